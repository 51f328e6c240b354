"""Generated tasks: their prompts, and what becomes of the answers."""

import json
from dataclasses import replace

import numpy as np
import pytest

from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.errors import UserError
from polylm_jax.evaluation import generated, metrics, prompts, tasks
from polylm_jax.evaluation.answers import Question, answer
from polylm_jax.evaluation.benchmarks import mgsm
from polylm_jax.evaluation.items import Prompt
from polylm_jax.evaluation.results import store
from polylm_jax.evaluation.score import Subject
from polylm_jax.evaluation.settings import Evaluation
from polylm_jax.model.decoder import Compute, Decoder
from tests import golden
from tests.data.sentences import SENTENCES

TABLE = tasks.table()


def squad(*questions):
    return {
        "data": [
            {
                "paragraphs": [
                    {
                        "context": f"P{n} {SENTENCES['ko'][n]}",
                        "qas": [{"id": str(n), "question": q, "answers": [{"text": f"A{n}"}]}],
                    }
                ]
            }
            for n, q in enumerate(questions)
        ]
    }


@pytest.fixture
def folder(tmp_path):
    def put(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text if isinstance(text, str) else json.dumps(text), "utf-8")

    for split in ("train", "dev"):
        put(f"tydiqa_goldp/tydiqa.goldp.ko.{split}.json", squad("Q0?", "Q1?", "Q2?"))
    put("xquad/xquad.de.json", squad("Q0?", "Q1?"))
    put("mgsm/mgsm_de.tsv", "Wie viele?\t1,200\nUnd jetzt?\t3\n")
    put("wmt20/wmt20.de-en.tsv", "Guten Tag.\tGood day.\nJa.\tYes.\n")
    put("ntrex/en.txt", "Good day.\nYes.\n")
    put("ntrex/th.txt", "สวัสดี\nใช่\n")
    rows = [{"source": "S0", "target": "T0"}, {"source": "S1", "target": "T1"}]
    put("mtg/tg.de.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    put("mtg/qg.de.jsonl", "".join(json.dumps(row | {"answer": "A"}) + "\n" for row in rows))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("name", "code", "paper", "lm_eval"),
    [
        (
            "tydiqa",
            "ko",
            "Answer the question in one or a few words in Korean.\nContext (Korean): P{0} {2}\n"
            "Question: Q{0}?\nAnswer: A{0}\n\n"
            "Answer the question in one or a few words in Korean.\nContext (Korean): P{1} {3}\n"
            "Question: Q{1}?\nAnswer:",
            "맥락: P{1} {3}\n\n질문: Q{1}?\n\n답변:",
        ),
        (
            "wmt20",
            "de-en",
            "Ja. Translate this sentence from German to English. Yes.\n"
            "Guten Tag. Translate this sentence from German to English.",
            "German phrase: Guten Tag.\nEnglish phrase:",
        ),
        (
            "ntrex_out_of_en",
            "th",
            "Yes. Translate this sentence from English to Thai. ใช่\n"
            "Good day. Translate this sentence from English to Thai.",
            "English phrase: Good day.\nThai phrase:",
        ),
        ("ntrex_into_en", "th", None, "Thai phrase: สวัสดี\nEnglish phrase:"),
        ("mgsm", "de", None, "Frage: Wie viele?\nAntwort:"),
        (
            "mtg_tg",
            "de",
            "Write a title of the document in German. document: S1 title: T1\n"
            "Write a title of the document in German. document: S0 title:",
            None,
        ),
    ],
)
def test_prompts(folder, name, code, paper, lm_eval):
    for protocol, text in (("paper", paper), ("lm_eval", lm_eval)):
        asked = tasks.ask(TABLE[name], code, protocol, folder)
        assert not asked.missing
        first = asked.items[0]
        if name == "tydiqa":
            shown = int(prompts.example([{}] * 3, 0) is None or first.text.split("P")[1][0])
            text = text.format(shown, 0, SENTENCES["ko"][shown], SENTENCES["ko"][0])
        if text is not None:
            assert first.text == text
        assert name == "mgsm" or first.stops == ("\n",)
        assert first.answers


def test_a_question_without_an_answer_is_named(tmp_path):
    asked = squad("Q0?", "Q1?")
    asked["data"][1]["paragraphs"][0]["qas"][0]["answers"] = []
    (tmp_path / "xquad").mkdir()
    (tmp_path / "xquad/xquad.de.json").write_text(json.dumps(asked), "utf-8")
    with pytest.raises(UserError, match=r"question 2 of .*xquad\.de\.json has no answer"):
        tasks.ask(TABLE["xquad"], "de", "paper", str(tmp_path))


def test_an_example_is_another_item_and_the_same_each_time():
    rows = [{"n": n} for n in range(50)]
    shown = [prompts.example(rows, n)["n"] for n in range(50)]
    assert all(one != n for n, one in enumerate(shown))
    assert shown == [prompts.example(rows, n)["n"] for n in range(50)]
    assert len(set(shown)) > 20
    assert prompts.example(rows[:1], 0) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Er hat 3 und 1,200 Euro.", "1,200"),
        ("so -5", "-5"),
        ("7", "7"),
        ("nichts", "[invalid]"),
        ("$18.00", "$18.00"),
    ],
)
def test_the_last_number_is_lm_evals(text, number):
    assert mgsm.last_number(text) == number


def test_figures_of_perfect_and_of_empty_answers(folder):
    for name, code in (("tydiqa", "ko"), ("wmt20", "de-en"), ("mtg_qg", "de"), ("mgsm", "de")):
        asked = tasks.ask(TABLE[name], code, "lm_eval", folder)
        best = TABLE[name].measure(asked.items, [f" {o.answers[0]}" for o in asked.items], code)
        none = TABLE[name].measure(asked.items, [""] * len(asked.items), code)
        for high, low in zip(best, none, strict=True):
            whole = 100 if high.name in ("bleu", "chrf++") else 1
            if high.name not in ("rouge", "rouge2", "bleu"):  # of one word
                assert high.value == pytest.approx(whole), high.name
            assert low.value == 0
        assert asked.notes == () or isinstance(asked.notes[0], str)
    bleu, chrf = TABLE["wmt20"].measure(
        tasks.ask(TABLE["wmt20"], "de-en", "paper", folder).items, ["Good day.", "No."], "de-en"
    )
    golds = ["Good day.", "Yes."]
    assert bleu.value == metrics.bleu(["Good day.", "No."], golds, "en").score
    assert "tok:13a" in bleu.note
    assert "chrF2++" in chrf.note


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [("ntrex_into_en", "zh", "13a"), ("ntrex_out_of_en", "zh", "zh"), ("wmt20", "zh-en", "13a")],
)
def test_bleu_counts_words_of_the_language_that_is_written(name, code, words):
    asked = [Prompt(0, "", ("\n",), 9, ("The train was late, he said.",))]
    measures = TABLE[name].measure(asked, ["The train was late, he said."], code)
    [bleu] = [one for one in measures if one.name == "bleu"]
    assert f"tok:{words}|" in bleu.note


def test_answers_are_kept_and_not_asked_again(folder, tmp_path):
    size, params, _ = golden.load("release")
    vocabulary = Tokenizer(golden.lm_eval()[1]["tokenizer"].tobytes())
    subject = Subject(Decoder(size, Compute(dtype="float32")), params, vocabulary, 1)
    asked = [tasks.ask(TABLE["wmt20"], "de-en", "lm_eval", folder)]
    asked.append(tasks.ask(TABLE["tydiqa"], "ko", "lm_eval", folder))
    settings = Evaluation(rows=4)
    told = []
    with store(tmp_path / "kept", {"step": 1}) as kept:
        work = generated.prepare(subject, asked, settings, kept)
        work.ask(told.append)
        first = work.results()
        assert sum(told) == work.positions > 0
    with store(tmp_path / "kept", {"step": 1}) as kept:
        again = generated.prepare(subject, asked, settings, kept)
        assert again.positions == 0
        assert [one.samples for one in again.results()] == [o.samples for o in first]
    translated, answered = first
    # no prompt fits: a context is 48 tokens, half of which are the answer's
    assert (translated.truncated, answered.truncated) == (2, 3)
    assert any("24 tokens at most" in note for note in translated.asked.notes)
    one = translated.samples[0]
    ids = vocabulary.encode([one["arguments"]["gen_args_0"]["arg_0"]])[0]
    [alone] = answer(
        subject.decoder,
        generated.weights.for_decoding(params, size, "float32"),
        vocabulary,
        [Question(ids, ("\n",), 24)],
        4,
    )
    assert one["filtered_resps"] == [alone.text]
    assert [len(each) for each in (translated.samples, answered.samples)] == [2, 3]
    assert answered.samples[0]["f1_squad"] == np.float64(answered.measures[0].each[0])
    with store(tmp_path / "kept", {"step": 1}) as kept:
        few = generated.prepare(subject, asked, replace(settings, too_long="leave_out"), kept)
        left = few.results()
    assert [(one.left_out, len(one.samples)) for one in left] == [(2, 0), (3, 0)]
    assert all(np.isnan(measure.value) for one in left for measure in one.measures)
    assert [len(one.measures) for one in left] == [2, 3]
