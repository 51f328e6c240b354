"""XCOPA: which of two sentences is the cause, or the effect, of another (Ponti et al., 2020)."""

from polylm_jax.evaluation.items import Choice, Item
from polylm_jax.evaluation.tasks import Row, Task, both

# as lm-eval has them, of May 2023 and 0.4.13: (because, therefore)
WORDS = {
    "id": ("karena", "maka"),
    "it": ("perché", "quindi"),
    "th": ("เพราะ", "ดังนั้น"),
    "tr": ("çünkü", "bu yüzden"),
    "vi": ("bởi vì", "vì vậy"),
    "zh": ("因为", "所以"),
    "et": ("sest", "seetõttu"),
    "ht": ("poukisa", "donk sa"),
    "qu": ("imataq", "chaymi"),
    "sw": ("kwa sababu", "kwa hiyo"),
    "ta": ("காரணமாக", "எனவே"),
}
STOPS = (".", "。", "!", "?", "！", "？")


def _items(rows: list[Row], language: str, protocol: str) -> list[Item]:
    because, therefore = WORDS[language]

    def context(row: Row) -> str:
        # the last character goes, be it a full stop or not
        word = because if row["question"] == "cause" else therefore
        return f"{row['premise'].strip()[:-1]} {word}"

    def small(text: str) -> str:
        return f" {text[:1].lower()}{text[1:]}"

    return [
        Item(
            number,
            tuple(Choice(context(row), small(row[name])) for name in ("choice1", "choice2")),
            row["label"],
            row,
        )
        for number, row in enumerate(rows)
    ]


def _notes(rows: list[Row], language: str, protocol: str) -> list[str]:
    lost = sum(not row["premise"].strip().endswith(STOPS) for row in rows)
    if lost < len(rows) / 10:
        return []
    return [f"{lost} of {len(rows)} premises lose their last letter: lm-eval takes it for a stop"]


TASK = Task(
    name="xcopa",
    kind="choice",
    languages=tuple(WORDS),
    key="xcopa_{}",
    files=both("xcopa/test.{}.jsonl"),
    origin="take data/LANGUAGE/test.LANGUAGE.jsonl of github.com/cambridgeltl/xcopa.",
    form={
        "premise": str,
        "choice1": str,
        "choice2": str,
        "question": frozenset({"cause", "effect"}),
        "label": range(2),
    },
    items=_items,
    chance=1 / 2,
    translated=True,
    notes=_notes,
)
