"""MMMLU: MMLU, translated by people for OpenAI: school and university exams with four answers."""

from polylm_jax.data.languages import name_of
from polylm_jax.evaluation.items import Item
from polylm_jax.evaluation.tasks import Row, Task, both, each, letter

CODES = {"zh": "ZH_CN", "es": "ES_LA", "de": "DE_DE", "fr": "FR_FR", "it": "IT_IT", "pt": "PT_BR",
         "ja": "JA_JP", "id": "ID_ID", "ar": "AR_XY", "ko": "KO_KR"}  # fmt: skip
WORDS = (
    "The following are multiple choice questions (with answers) about {} ({}).\n\n"
    "{}\nA. {}\nB. {}\nC. {}\nD. {}\nAnswer:"
)
CALLED = {"zh": "Simplified Chinese", "pt": "Brazilian Portuguese"}  # by lm-eval


def _items(rows: list[Row], language: str, protocol: str) -> list[Item]:
    name = CALLED.get(language, name_of(language).partition(" (")[0])
    return each(
        lambda row: WORDS.format(
            row["Subject"].replace("_", " "), name, row["Question"].strip(), *map(row.get, "ABCD")
        ),
        lambda row: "ABCD",
        lambda row: letter(row["Answer"]),
    )(rows, language, protocol)


TASK = Task(
    name="mmmlu",
    kind="choice",
    languages=tuple(CODES),
    key="mmmlu_{}",
    files=both("mmmlu/{}.jsonl"),
    origin="take the test split of a language of openai/MMMLU, as JSONL.",
    form={"Question": str, "Subject": str, "Answer": frozenset("ABCD")}
    | dict.fromkeys("ABCD", str),
    items=_items,
    codes=CODES,
    chance=1 / 4,
    translated=True,
)
