"""What is said of an evaluation between two steps, and of the time it takes."""

import time

from polylm_jax.train.exam import Exam, told

RECORD = {
    "score": {"ntrex": 3.404, "word_order": 0.581, "xcopa": 0.509, "lost": None},
    "error": {"ntrex": 0.012, "word_order": 0.015, "xcopa": 0.007, "lost": None},
    "chance": {"word_order": 0.5, "xcopa": 0.5},
}


def test_scores_are_told_with_their_errors_and_chance_as_chance():
    assert told(RECORD) == (
        "evaluation: ntrex 3.404 ± 0.012 bits per byte, word_order 58.1 ± 1.5 (chance 50), "
        "xcopa 50.9 ± 0.7 (not different from chance), lost is not a number"
    )
    assert told({"score": {"xcopa": None}, "chance": {}}) == "evaluation: xcopa is not a number"


def test_too_large_a_share_of_the_time_is_said_once(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def ask(variables):
        now[0] += variables
        return RECORD

    exam, said = Exam(ask, every=100), []
    for steps, seconds in ((0, 50), (996, 4), (900, 100), (900, 100)):
        now[0] += steps
        record, lines = exam(seconds)
        assert record["seconds"] == seconds
        said.append(lines[1:])
    # the first compiles; the second takes 4 of 1,000 seconds, the next ones 100
    assert said[:2] == [[], []]
    [line] = said[2]
    assert "takes 10.0% of the time; train.evaluate_every = 1000 or fewer items" in line
    assert said[3] == []
