"""XNLI: does a sentence follow from another, contradict it, or neither (Conneau et al., 2018)."""

from polylm_jax.evaluation.items import Choice, Item
from polylm_jax.evaluation.tasks import Row, Task, columned, decoded, plain

# As lm-eval has them, of May 2023 and 0.4.13, a translation word by word with its faults: the
# question, then entailment, neutral, contradiction.
WORDS = {
    "en": ("right", "Yes", "Also", "No"),
    "zh": ("正确", "是的", "所以", "不是的"),
    "ar": ("صحيح", "نعم", "لذا", "رقم"),
    "es": ("correcto", "Sí", "Asi que", "No"),
    "fr": ("correct", "Oui", "Aussi", "Non"),
    "ru": ("правильно", "Да", "Так", "Нет"),
    "th": ("ถูกต้อง", "ใช่", "ดังนั้น", "ไม่"),
    "tr": ("doğru", "Evet", "Böylece", "Hayır"),
    "vi": ("đúng", "Vâng", "Vì vậy", "Không"),
    "de": ("richtig", "Ja", "Auch", "Nein"),
    "bg": ("правилно", "да", "така", "не"),
    "el": ("σωστός", "Ναί", "Έτσι", "όχι"),
    "hi": ("सही", "हाँ", "इसलिए", "नहीं"),
    "sw": ("sahihi", "Ndiyo", "Hivyo", "Hapana"),
    "ur": ("صحیح", "جی ہاں", "اس لئے", "نہیں"),
}
LABELS = ("entailment", "neutral", "contradiction")
ODD = {"ar": 'the word of contradiction, "رقم", means number', "es": '"Asi que" lacks an accent'}


def _read(file: str, content: bytes, code: str) -> list[Row]:
    """The rows of one language; the original file has all, unquoted, with words for labels."""
    if not file.endswith(".tsv"):
        return plain(file, content, code)
    rows = columned(file, decoded(file, content), quoted=False)
    return [
        {
            "premise": row.get("sentence1"),
            "hypothesis": row.get("sentence2"),
            "label": LABELS.index(row["gold_label"]) if row.get("gold_label") in LABELS else None,
        }
        for row in rows
        if row.get("language", code) == code
    ]


def _items(rows: list[Row], language: str, protocol: str) -> list[Item]:
    question, *words = WORDS[language]
    space = " " if protocol == "lm_eval" else ""
    return [
        Item(
            number,
            tuple(
                Choice("", f"{space}{row['premise']}, {question}? {word}, {row['hypothesis']}")
                for word in words
            ),
            row["label"],
            row,
        )
        for number, row in enumerate(rows)
    ]


def _notes(rows: list[Row], language: str, protocol: str) -> list[str]:
    return [ODD[language]] if language in ODD else []


TASK = Task(
    name="xnli",
    kind="choice",
    languages=tuple(WORDS),
    key="xnli_{}",
    files={
        "paper": ("xnli/test.{}.jsonl", "xnli/xnli.test.tsv"),
        "lm_eval": ("xnli/validation.{}.jsonl", "xnli/xnli.dev.tsv"),
    },
    origin="take xnli.test.tsv and xnli.dev.tsv of XNLI-1.0 (CC BY-NC 4.0), or a language of "
    "facebook/xnli as JSONL.",
    form={"premise": str, "hypothesis": str, "label": range(3)},
    items=_items,
    read=_read,
    chance=1 / 3,
    translated=True,
    notes=_notes,
)
