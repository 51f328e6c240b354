"""MGSM: the number that a problem of school mathematics comes to (Shi et al., 2022)."""

import re
import string
from collections.abc import Sequence

import numpy as np

from polylm_jax.evaluation import prompts
from polylm_jax.evaluation.choices import mean
from polylm_jax.evaluation.items import Measure, Prompt
from polylm_jax.evaluation.tasks import Row, Task, both

# as lm-eval 0.4.13's mgsm_direct has them: what stands before the problem, what asks for the answer
WORDS = {
    "en": ("Question: ", "Answer:"),
    "zh": ("问题： ", "Answer:"),
    "es": ("Pregunta: ", "Respuesta:"),
    "de": ("Frage: ", "Antwort:"),
    "fr": ("Question : ", "Réponse :"),
    "ru": ("Задача: ", "Answer:"),
    "ja": ("問題： ", "Answer:"),
    "th": ("โจทย์: ", "Answer:"),
    "bn": ("প্রশ্ন: ", "Answer:"),
    "sw": ("Swali: ", "Answer:"),
    "te": ("ప్రశ్న: ", "Answer:"),
}
NUMBER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
NONE = "[invalid]"


def last_number(text: str) -> str:
    """The last number in a text, as lm-eval's "flexible-extract" takes it."""
    found = NUMBER.findall(text)
    return next(filter(None, found[-1])).strip() if found else NONE


def same(answer: str, gold: str) -> bool:
    """Whether two texts are the same but for case and ASCII punctuation."""
    plain = str.maketrans("", "", string.punctuation)
    return answer.lower().translate(plain) == gold.lower().translate(plain)


def _items(rows: list[Row], language: str, protocol: str) -> list[Prompt]:
    before, answer = WORDS[language]
    texts = [f"{before}{row['question']}\n{answer}" for row in rows]
    stops = (before.strip(), "</s>", "<|im_end|>")
    return prompts.prompts_of(rows, texts, lambda row: (row["answer"].replace(",", ""),), stops)


def _measure(asked: Sequence[Prompt], texts: Sequence[str], language: str) -> list[Measure]:
    pairs = [(one.answers[0], text) for one, text in zip(asked, texts, strict=True)]
    found = {
        "exact_match,flexible-extract": [same(last_number(text), gold) for gold, text in pairs],
        "exact_match": [same(text.lstrip(), gold) for gold, text in pairs],
    }
    return [mean(name, np.array(values, float)) for name, values in found.items()]


TASK = Task(
    name="mgsm",
    kind="generated",
    languages=tuple(WORDS),
    key="mgsm_direct_{}",
    files=both("mgsm/mgsm_{}.tsv"),
    origin="take mgsm/mgsm_LANGUAGE.tsv of github.com/google-research/url-nlp.",
    form={"question": str, "answer": str},
    items=_items,
    read=prompts.columns("question", "answer"),
    translated=True,
    measure=_measure,
)
