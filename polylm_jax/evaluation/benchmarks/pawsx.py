"""PAWS-X: do two sentences of the same words say the same (Yang et al., 2019)."""

import re

from polylm_jax.evaluation.items import Choice, Item
from polylm_jax.evaluation.tasks import Row, Task, both, plain

# as lm-eval 0.4.13 has them: question, no, yes
WORDS = {
    "en": ("right", "No", "Yes"),
    "zh": ("对吧", "不是", "是"),
    "es": ("verdad", "No", "Sí"),
    "fr": ("n'est-ce pas", "Non", "Oui"),
    "ja": ("ですね", "いいえ", "はい"),
    "ko": ("맞죠", "아니요", "예"),
    "de": ("richtig", "Nein", "Ja"),
}
OF_MAY_2023 = WORDS | {"fr": ("right", "No", "Oui")}
CHANGED = ("de", "en", "es", "fr")  # the text that lm-eval changes since 0.4.9
UNTRANSLATED = "NS"


def _read(file: str, content: bytes, code: str) -> list[Row]:
    """Labels are words in the one form of the file and numbers in the other."""
    return [row | {"label": str(row.get("label"))} for row in plain(file, content, code)]


def joined(text: str) -> str:
    """The text without the spaces that its tokenizing put beside marks, as lm-eval 0.4.9 has it."""
    for apart, together in ((" n't", "n't"), (" )", ")"), ("( ", "("), ('" ', '"'), (' "', '"')):
        text = text.replace(apart, together)
    return re.sub(r" (['.,])", r"\1", text).strip()


def _sentences(row: Row, language: str, protocol: str) -> tuple[str, str]:
    first, second = row["sentence1"], row["sentence2"]
    if protocol == "paper" or language not in CHANGED:
        return first, second
    first, second = joined(first), joined(second)
    return first[:-1] if first.endswith((".", ",", ";")) else first, second[:1].lower() + second[1:]


def _items(rows: list[Row], language: str, protocol: str) -> list[Item]:
    question, *words = (OF_MAY_2023 if protocol == "paper" else WORDS)[language]
    items = []
    for number, row in enumerate(rows):
        first, second = _sentences(row, language, protocol)
        texts = [f"{first}, {question}? {word}, {second}" for word in words]
        if row["label"] and first and second:
            choices = tuple(Choice("", text) for text in texts)
            items.append(Item(number, choices, int(row["label"]), row))
    return items


def _notes(rows: list[Row], language: str, protocol: str) -> list[str]:
    notes = []
    if protocol == "paper" and language == "fr":
        notes.append('the question is the English "right?", and no is "No", as in May 2023')
    if protocol == "lm_eval" and language in CHANGED:
        notes.append("text changed as lm-eval does since 0.4.9: marks joined, a last .,; taken off")
    untranslated = sum(UNTRANSLATED in (row["sentence1"], row["sentence2"]) for row in rows)
    if untranslated:
        notes.append(f'{untranslated} rows hold "NS", which was never translated, and are kept')
    if unlabelled := sum(row["label"] == "" for row in rows):
        notes.append(f"{unlabelled} rows have no label and are left out")
    return notes


TASK = Task(
    name="pawsx",
    kind="choice",
    languages=tuple(WORDS),
    key="paws_{}",
    files=both("pawsx/test-{}.tsv", "pawsx/test.{}.jsonl"),
    origin="take x-final/LANGUAGE/test_2k.tsv of github.com/google-research-datasets/paws.",
    form={
        "sentence1": str,
        "sentence2": str,
        "label": frozenset({"0", "1", ""}),
    },
    items=_items,
    read=_read,
    chance=1 / 2,
    translated=True,
    notes=_notes,
)
