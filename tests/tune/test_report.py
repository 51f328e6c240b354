"""What the report says of numbers that are known beforehand."""

import numpy as np
import pytest

from polylm_jax.tune.filters import REASONS, TaskFilters, Verdict, rules_of
from polylm_jax.tune.journal import Reply, Request, Spent
from polylm_jax.tune.parse import Block, Task
from polylm_jax.tune.report import Counts, counts, entropy, measured, said, table
from polylm_jax.tune.rounds import cost_text
from polylm_jax.tune.self_instruct import Answer
from polylm_jax.tune.writer import Writer

REJECTED = dict.fromkeys(REASONS, 0)


def test_a_funnel_counts_every_task_once():
    task = Task("Escribe algo.", None, "algo")
    verdicts = (
        Verdict(Block(cut_there=True), task, repaired=True),
        Verdict(Block(), None, "link", "www.x"),
        Verdict(Block(), None, "link", "www.y"),
    )
    request = Request("es", 1, 0, "p", "w")
    answers = [Answer(request, Reply("", True, None), verdicts), Answer(request, None)]
    assert counts(answers) == Counts(2, 1, 3, REJECTED | {"link": 2}, 1, 1, 1)


@pytest.mark.parametrize(
    ("came", "kept", "sentence"),
    [
        (0, 0, "**Nothing was kept: no task could be read in 9 answers.**"),
        (
            100,
            0,
            "**Nearly everything was rejected.** Kept 0 of 100 tasks (0.0%). The commonest re",
        ),
        (100, 4, "**Nearly everything was rejected.** Kept 4 of 100 tasks (4.0%)."),
        (1000, 780, "Kept 780 of 1,000 tasks (78.0%)."),
    ],
)
def test_little_is_said_plainly(came, kept, sentence):
    rejected = REJECTED | {"format": came - kept}
    assert said(Counts(9, 9, came, rejected, kept, 0, 0)).startswith(sentence)


def test_what_is_kept_is_measured_in_words():
    texts = ["Escribe una frase.", "¿Escribe una carta?", "Dime tres cosas de Roma"]
    tasks = [
        Task(text, given, "sí") for text, given in zip(texts, (None, "a b", None), strict=True)
    ]
    kept = measured(tasks, rules_of(TaskFilters(), "es"))
    assert kept.words.tolist() == [[3, 0, 1], [3, 2, 1], [5, 0, 1]]
    assert kept.with_input == 1
    assert kept.beginnings[0] == (("Escribe", "una"), 2)
    np.testing.assert_allclose(kept.nearest, [4 / 9, 4 / 9, 0])
    assert kept.entropy == pytest.approx(np.log2(3) - 2 / 3)
    assert entropy([5, 5, 5, 5]) == 2
    empty = measured([], rules_of(TaskFilters(), "es"))
    assert empty.words.shape == (0, 3)


def test_a_cost_is_told_or_unknown():
    priced = Writer(usd_in=1.0, usd_out=2.0)
    assert cost_text(Spent((10**6, 10**6), answers=2), priced) == "3.00 USD"
    assert cost_text(Spent((10**6, 10**6), answers=2), priced, 20) == "3.00 USD of about 30.00 USD"
    assert cost_text(Spent((0, 0), answers=2, silent=2), priced) == "cost unknown"
    some = cost_text(Spent((10**6, 0), answers=2, silent=1), priced)
    assert some == "cost unknown, at least 1.00 USD (1 answers do not say)"
    assert cost_text(Spent((5, 6), answers=2), Writer()) == "11 tokens, cost unknown without prices"


def test_a_table_is_markdown():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"
