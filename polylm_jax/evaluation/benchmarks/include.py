"""INCLUDE: exams of the countries themselves, not translated (Romanou et al., 2024)."""

from polylm_jax.data.languages import LANGUAGES, name_of
from polylm_jax.evaluation.benchmarks.global_mmlu import OPTIONS
from polylm_jax.evaluation.tasks import Task, both, each

# lm-eval's, which has no end of line before the question and a space before D
WORDS = (
    "The following is multiple-choice question about {}.{}\nA. {}\nB. {}\nC. {}\n D. {}\nAnswer:"
)
NAMES = {
    code: name_of(code).partition(" (")[0].lower() for code in LANGUAGES if code not in ("en", "th")
}

TASK = Task(
    name="include",
    kind="choice",
    languages=tuple(NAMES),
    key="include_base_44_{}",
    files=both("include/{}.jsonl"),
    origin="take the test split of a language of CohereLabs/include-base-44, as JSONL.",
    form={"question": str, "domain": str, "answer": range(4)} | dict.fromkeys(OPTIONS, str),
    items=each(
        lambda row: WORDS.format(row["domain"], row["question"].strip(), *map(row.get, OPTIONS)),
        lambda row: "ABCD",
        lambda row: row["answer"],
    ),
    codes=NAMES,
    chance=1 / 4,
)
