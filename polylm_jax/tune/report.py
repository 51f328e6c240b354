"""What became of what was asked: a funnel by round, what is kept, what it cost, beside the paper.

Everything in it is a pure function of seeds, journal and prices.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polylm_jax.data.languages import name_of
from polylm_jax.tune.filters import REASONS, Rules
from polylm_jax.tune.journal import Spent
from polylm_jax.tune.parse import Task
from polylm_jax.tune.rouge import Texts
from polylm_jax.tune.rounds import cost_text
from polylm_jax.tune.self_instruct import Answer, Language, Story, english_name
from polylm_jax.tune.words import count
from polylm_jax.tune.writer import Writer

# Tasks of MultiAlpaca by language (paper, Table 7).
PAPER = {
    "ar": 14_671,
    "de": 9_515,
    "es": 9_958,
    "fr": 11_332,
    "id": 12_117,
    "ja": 10_191,
    "ko": 14_402,
    "pt": 10_825,
    "ru": 14_286,
    "th": 11_496,
    "vi": 13_908,
}
TOP = 20  # beginnings that are listed
FEW = 0.05  # acceptance below which the report warns

WHY = {
    "cut": "the reply ended in it",
    "format": "no instruction or no output, or a mark left in it",
    "empty": "an instruction or an output that says nothing",
    "link": "a web link",
    "length": "an instruction too short or too long",
    "keyword": "needs more than text",
    "language": "an instruction in another language",
    "similar": "too like a seed or a task that is kept",
    "input": "the input repeats the instruction",
}


@dataclass(frozen=True)
class Counts:
    """A funnel: requests asked and answered, tasks that came, rejected by reason, kept.

    cut_there: fields that ran on into a later header and were cut at it. repaired: inputs that
    stood in their instruction and were dropped.
    """

    asked: int
    answered: int
    came: int
    rejected: dict[str, int]
    kept: int
    cut_there: int
    repaired: int

    @property
    def acceptance(self) -> float:
        """Kept, of all that came; 0 where nothing came."""
        return self.kept / self.came if self.came else 0.0


@dataclass(frozen=True)
class Kept:
    """The tasks that are kept, measured in the language's words.

    words: [tasks, 3], of instruction, input and output. nearest: ROUGE-L's F of each instruction
    and the most like of the others. beginnings: first two words of instructions, the commonest
    first. entropy: of the first word, in bits.
    """

    words: np.ndarray
    nearest: np.ndarray
    with_input: int
    beginnings: list[tuple[tuple[str, str], int]]
    entropy: float


def counts(answers: Sequence[Answer]) -> Counts:
    """The funnel of some answers."""
    verdicts = [verdict for answer in answers for verdict in answer.verdicts]
    reasons = Counter(verdict.reason for verdict in verdicts)
    return Counts(
        len(answers),
        sum(answer.reply is not None for answer in answers),
        len(verdicts),
        {reason: reasons[reason] for reason in REASONS},
        sum(verdict.task is not None for verdict in verdicts),
        sum(verdict.block.cut_there for verdict in verdicts),
        sum(verdict.repaired for verdict in verdicts),
    )


def spent(story: Story) -> Spent:
    """Tokens of the answers that tasks were read from."""
    replies = [a.reply for answers in story.rounds for a in answers if a.reply]
    known = [reply.tokens for reply in replies if reply.tokens]
    tokens = sum(t[0] for t in known), sum(t[1] for t in known)
    return Spent(tokens, (0, 0), len(replies), len(replies) - len(known))


def measured(tasks: Sequence[Task], rules: Rules) -> Kept:
    """What is kept, measured."""
    split = [rules.words(task.instruction) for task in tasks]
    words = np.array(
        [
            (count(first), count(rules.words(task.input or "")), count(rules.words(task.output)))
            for first, task in zip(split, tasks, strict=True)
        ],
        int,
    ).reshape(-1, 3)
    texts = Texts(rules.words)
    texts.add([task.instruction for task in tasks])
    starts = [[*filter(lambda word: count([word]), first), "", ""] for first in split]
    pairs = Counter((start[0], start[1]) for start in starts)
    ones = Counter(pair[0] for pair in pairs.elements())
    return Kept(
        words,
        texts.nearest(),
        sum(task.input is not None for task in tasks),
        sorted(pairs.items(), key=lambda item: (-item[1], item[0])),
        entropy(list(ones.values())),
    )


def entropy(numbers: Sequence[int]) -> float:
    """Of shares in proportion to these numbers, in bits."""
    whole = sum(numbers)
    return -sum(n / whole * math.log2(n / whole) for n in numbers if n)


def of_language(language: Language, kept: Kept, writer: Writer) -> str:
    """One language's report, in Markdown."""
    story = language.story
    rounds = [counts(answers) for answers in story.rounds]
    whole = counts([answer for answers in story.rounds for answer in answers])
    rows = [(str(number), one) for number, one in enumerate(rounds, 1)] + [("all", whole)]
    used = spent(story)
    head = ["round", "asked", "answered", "tasks", *REASONS, "kept", "acceptance"]
    parts = [
        f"# {name_of(story.language)}",
        said(whole),
        "## From requests to tasks",
        table(head, [[number, *_cells(one)] for number, one in rows]),
        "\n".join(f"- {reason}: {WHY[reason]}" for reason in REASONS if whole.rejected[reason]),
        f"{whole.cut_there:,} fields ran on into a later header and were cut at it; "
        f"{whole.repaired:,} inputs stood in their instruction and were dropped.",
        "## Cost",
        f"{used.known[0]:,} tokens in and {used.known[1]:,} out in {used.answers:,} answers"
        + (f", {used.silent:,} of which do not say what they took" if used.silent else "")
        + f": {cost_text(used, writer)}.",
    ]
    if whole.kept:
        parts += ["## What is kept", _kept_text(kept, whole), "![](report.png)", _beginnings(kept)]
    return "\n\n".join(filter(None, parts)) + "\n"


def said(whole: Counts) -> str:
    """The funnel in a sentence, plain where little came of it."""
    if not whole.answered:
        return "Nothing was answered yet."
    if not whole.came:
        return (
            f"**Nothing was kept: no task could be read in {whole.answered:,} answers.** A writer "
            "has to follow the form that the prompt shows."
        )
    share = f"Kept {whole.kept:,} of {whole.came:,} tasks ({whole.acceptance:.1%})."
    if whole.acceptance >= FEW:
        return share
    worst = max(whole.rejected, key=lambda reason: whole.rejected[reason])
    return (
        f"**Nearly everything was rejected.** {share} The commonest reason is {worst} "
        f"({whole.rejected[worst]:,}): {WHY[worst]}."
    )


def of_all(languages: Sequence[Language], writer: Writer, kept: Sequence[Kept]) -> str:
    """The report on all languages, in Markdown, beside the paper's Table 7."""
    funnels = [
        counts([answer for answers in one.story.rounds for answer in answers]) for one in languages
    ]
    total = sum(one.kept for one in funnels)
    paper = sum(PAPER.values())
    head = ["language", "asked", "answered", "tasks", "kept", "acceptance", "share", "with input"]
    head += ["tokens out", "cost", "paper kept", "paper share"]
    rows = []
    for one, funnel, tasks in zip(languages, funnels, kept, strict=True):
        code, used = one.story.language, spent(one.story)
        rows.append(
            [
                name_of(code),
                *_cells(funnel)[:3],
                f"{funnel.kept:,}",
                f"{funnel.acceptance:.1%}",
                f"{funnel.kept / total:.2%}" if total else "",
                f"{tasks.with_input / funnel.kept:.0%}" if funnel.kept else "",
                f"{used.known[1]:,}",
                cost_text(used, writer),
                f"{PAPER[code]:,}" if code in PAPER else "",
                f"{PAPER[code] / paper:.2%}" if code in PAPER else "",
            ]
        )
    used = sum((spent(one.story) for one in languages), Spent())
    came = sum(one.came for one in funnels)
    rows.append(
        [
            "all",
            *(f"{sum(getattr(one, name) for one in funnels):,}" for name in ("asked", "answered")),
            f"{came:,}",
            f"{total:,}",
            f"{total / came:.1%}" if came else "0.0%",
            "",
            "",
            f"{used.known[1]:,}",
            cost_text(used, writer),
            f"{paper:,}",
            "",
        ]
    )
    sentences = [
        f"- {english_name(one.story.language)}: {said(funnel)}"
        for one, funnel in zip(languages, funnels, strict=True)
    ]
    note = (
        "The paper's columns are its Table 7: 10 rounds of 100 requests (the first of 10), "
        "`gpt-3.5-turbo-0301`."
    )
    picture = ["![](report.png)"] if total else []
    parts = ["# Self-instruct", "\n".join(sentences), table(head, rows), note, *picture]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(one: Counts) -> list[str]:
    numbers = [one.asked, one.answered, one.came, *one.rejected.values(), one.kept]
    return [*(f"{number:,}" for number in numbers), f"{one.acceptance:.1%}"]


def _kept_text(kept: Kept, whole: Counts) -> str:
    means = kept.words.mean(0)
    top = sum(number for _, number in kept.beginnings[:TOP]) / whole.kept
    given = kept.words[kept.words[:, 1] > 0, 1]
    return (
        f"Mean words: {means[0]:.1f} of an instruction, {given.mean() if len(given) else 0:.1f} of "
        f"an input where there is one ({kept.with_input / whole.kept:.0%}), {means[2]:.1f} of an "
        f"output. Most like another instruction: ROUGE-L {np.median(kept.nearest):.3f} in the "
        f"median, {kept.nearest.max():.3f} at most. First words: {kept.entropy:.2f} bits; the "
        f"{TOP} commonest beginnings of two words have {top:.0%} of all."
    )


def _beginnings(kept: Kept) -> str:
    rows = [
        [str(place), " ".join(words).replace("|", "\\|").strip(), f"{number:,}"]
        for place, (words, number) in enumerate(kept.beginnings[:TOP], 1)
    ]
    return table(["", "first two words", "tasks"], rows)
