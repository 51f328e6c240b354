"""SIB-200: which of seven topics a sentence has (Adelani et al., 2023); lm-eval's first prompt."""

from polylm_jax.data.languages import LANGUAGES
from polylm_jax.evaluation.tasks import Task, both, each

TOPICS = (
    *("science/technology", "travel", "politics", "sports", "health", "entertainment"),
    "geography",
)

TASK = Task(
    name="sib200",
    kind="choice",
    languages=tuple(LANGUAGES),
    key="sib_{}_prompt_1",
    files=both("sib200/{}.test.tsv"),
    origin="take data/annotated/LANGUAGE/test.tsv of github.com/dadelani/sib-200, renamed.",
    form={"text": str, "category": frozenset(TOPICS)},
    items=each(
        lambda row: (
            f"Given the categories {', '.join(TOPICS[:-1])}, or {TOPICS[-1]}; what category does "
            f"the text: '{row['text']}' belong to: \n\n"
        ),
        lambda row: TOPICS,
        lambda row: TOPICS.index(row["category"]),
    ),
    chance=1 / 7,
    translated=True,
)
