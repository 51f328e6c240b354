"""What generated tasks share: rows of questions and of translations, an example, the figures."""

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from polylm_jax.errors import UserError
from polylm_jax.evaluation import metrics
from polylm_jax.evaluation.choices import mean
from polylm_jax.evaluation.items import Measure, Prompt
from polylm_jax.evaluation.tasks import Row, lines
from polylm_jax.jsonl import parse_json

LINE = ("\n",)  # an answer of a base model ends with its line
NEW_TOKENS = 256  # the paper's, and lm-eval's where a task does not say
ONE_EXAMPLE = "the example of each item is another item, by its number: the paper draws at random"

SQUAD = {
    "data": [
        {"paragraphs": [{"context": str, "qas": [{"question": str, "answers": [{"text": str}]}]}]}
    ]
}
QUESTION = {"context": str, "question": str, "answers": [str]}


def squad(file: str, content: bytes, code: str) -> list[Row]:
    """The questions of a file in SQuAD's form, each with its passage and its answers."""
    whole = parse_json(content, SQUAD, file, "in the form of SQuAD; take the file as it is")
    rows = [
        {
            "id": str(asked.get("id", "")),
            "context": part["context"],
            "question": asked["question"],
            "answers": [one["text"] for one in asked["answers"]],
        }
        for article in whole["data"]
        for part in article["paragraphs"]
        for asked in part["qas"]
    ]
    if lacking := [number for number, row in enumerate(rows, 1) if not row["answers"]]:
        raise UserError(
            f"question {lacking[0]} of {file} has no answer; leave out what cannot be answered."
        )
    return rows


def columns(*names: str) -> Callable[[str, bytes, str], list[Row]]:
    """A reader of lines of so many fields with a tab between, and no line of names."""

    def read(file: str, content: bytes, code: str) -> list[Row]:
        rows = []
        for number, line in enumerate(lines(file, content, code), 1):
            fields = line["text"].split("\t")
            if len(fields) != len(names):
                raise UserError(
                    f"{file}:{number} has {len(fields)} fields with tabs between, not "
                    f"{len(names)} ({', '.join(names)}); take the file as it is."
                )
            rows.append(dict(zip(names, fields, strict=True)))
        return rows

    return read


def example(rows: Sequence[Row], number: int) -> Row | None:
    """The one that is shown before item `number`: another, the same in every run; None if there
    is none."""
    if len(rows) < 2:
        return None
    step = 1 + zlib.crc32(str(number).encode()) % (len(rows) - 1)
    return rows[(number + step) % len(rows)]


def with_example(
    rows: list[Row], asked: Callable[[Row], str], told: Callable[[Row], str], between: str
) -> list[str]:
    """Prompts of all rows, each behind another row that is asked and told."""
    prompts = []
    for number, row in enumerate(rows):
        shown = example(rows, number)
        before = f"{asked(shown)} {told(shown)}{between}" if shown else ""
        prompts.append(before + asked(row))
    return prompts


def f1(prompts: Sequence[Prompt], texts: Sequence[str], language: str) -> list[Measure]:
    """F1 under both of its names, and exact answers."""
    pairs = [(text.strip(), one.answers) for one, text in zip(prompts, texts, strict=True)]
    return [
        _each("f1_squad", [metrics.f1_squad(*pair) for pair in pairs]),
        _each("f1_unicode", [metrics.f1_unicode(*pair, language) for pair in pairs]),
        _each("exact_match", [metrics.exact_squad(*pair) for pair in pairs]),
    ]


def rouge(prompts: Sequence[Prompt], texts: Sequence[str], language: str) -> list[Measure]:
    """The mean of ROUGE-1, 2 and L, as the paper has it, and each of them."""
    found = [metrics.rouge(t, one.answers) for one, t in zip(prompts, texts, strict=True)]
    means = [float(np.mean(list(one.values()))) for one in found]
    return [
        _each("rouge", means),
        *(_each(name, [one[name] for one in found]) for name in metrics.ROUGES),
    ]


def translation(
    first: str, into: str = ""
) -> Callable[[Sequence[Prompt], Sequence[str], str], list[Measure]]:
    """BLEU and chrF++ of translations; `first` says which stands first.

    into: the language of the answers, whose words BLEU counts; "" for the second one of the
    task's pair, or the one that it is called by.
    """

    def measure(prompts: Sequence[Prompt], texts: Sequence[str], language: str) -> list[Measure]:
        target = into or language.split("-")[-1]
        answers = [text.strip() for text in texts]
        golds = [one.answers[0] for one in prompts]
        found = {
            "bleu": metrics.bleu(answers, golds, target),
            "chrf++": metrics.chrf(answers, golds),
        }
        order = sorted(found, key=lambda name: name != first)
        return [
            Measure(name, found[name].score, found[name].error, None, found[name].signature)
            for name in order
        ]

    return measure


def prompts_of(
    rows: Sequence[Row],
    texts: Sequence[str],
    answers: Callable[[Row], Sequence[str]],
    stops: tuple[str, ...] = LINE,
) -> list[Prompt]:
    """A Prompt for each row and its text."""
    return [
        Prompt(number, text, stops, NEW_TOKENS, tuple(answers(row)), row)
        for number, (row, text) in enumerate(zip(rows, texts, strict=True))
    ]


def _each(name: str, values: Sequence[float]) -> Measure:
    return mean(name, np.array(values, float))
