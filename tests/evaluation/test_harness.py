"""Scores and answers against lm-eval's own model for transformers, on a folder that we export."""

import importlib.util
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import jax
import jinja2.ext
import numpy as np
import pytest

from polylm_jax.__main__ import main
from polylm_jax.data.tokenizer import EOS, Tokenizer
from polylm_jax.decode import chat
from polylm_jax.errors import UserError
from polylm_jax.evaluation import harness
from polylm_jax.evaluation.answers import Answer, Question, answer, decode, until
from polylm_jax.evaluation.harness import Subject
from polylm_jax.evaluation.likelihood import Score
from polylm_jax.evaluation.packing import windows
from polylm_jax.model.decoder import Compute, Decoder
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.parallel.sharding import constrainer, parameter_shardings
from tests import golden

FLOAT32 = Compute(dtype="float32")


@pytest.fixture(scope="module")
def cases():
    return golden.lm_eval()[0]


@pytest.fixture(scope="module")
def subject():
    size, params, _ = golden.load("release")
    vocabulary = Tokenizer(golden.lm_eval()[1]["tokenizer"].tobytes())
    return Subject(Decoder(size, FLOAT32), params, vocabulary, ways=1, batch=16)


def test_scores_of_pairs_are_lm_evals(subject, cases):
    found = harness.log_likelihoods(subject, [(a, b) for a, b, *_ in cases["pairs"]])
    expected = [one for *_, one, _ in cases["pairs"]]
    np.testing.assert_allclose([one for one, _ in found], expected, atol=1e-3)
    assert [greedy for _, greedy in found] == [greedy for *_, greedy in cases["pairs"]]


def test_rolling_sums_are_lm_evals(subject, cases):
    texts = [text for text, _ in cases["texts"]]
    found = harness.rolling_log_likelihoods(subject, texts)
    np.testing.assert_allclose(found, [one for _, one in cases["texts"]], atol=1e-3)
    lengths = {len(ids) // subject.decoder.size.context for ids in subject.tokenizer.encode(texts)}
    assert {0, 1, 2, 3} <= lengths


def test_answers_are_lm_evals_to_the_letter(subject, cases):
    asked = [(prompt, settings) for prompt, settings, _ in cases["answers"]]
    assert len(asked) == 50
    assert harness.answers_until(subject, asked) == [text for *_, text in cases["answers"]]
    # nor does it matter what else is asked, and how much at once
    few = replace(subject, batch=3)
    assert harness.answers_until(few, asked[::-7]) == [text for *_, text in cases["answers"][::-7]]


def test_a_mesh_answers_as_one_device(subject, cases):
    mesh = make_mesh(MeshShape(2, 2, 2), jax.devices())
    asked = [(prompt, settings) for prompt, settings, _ in cases["answers"]][:20]
    with jax.set_mesh(mesh):
        decoder = replace(subject.decoder, constrain=constrainer(mesh))
        split = jax.device_put(subject.params, parameter_shardings(subject.decoder.size, mesh))
        there = Subject(decoder, split, subject.tokenizer, ways=2, batch=5)
        assert there.whole_batch == 6
        assert harness.answers_until(there, asked) == [text for *_, text in cases["answers"][:20]]


def test_conversations_are_the_exported_templates(subject, cases):
    for messages, awaited, text in cases["chats"]:
        assert harness.rendered(subject.settings, messages, awaited) == text


@pytest.mark.parametrize("name", chat.FORMATS)
@pytest.mark.parametrize("keep_ends", [False, True])
def test_conversations_are_the_templates_of_every_format(cases, name, keep_ends):
    settings = chat.ChatSettings(format=name, keep_ends=keep_ends)
    environment = jinja2.Environment(extensions=[Generation])
    template = environment.from_string(chat.template(chat.FORMATS[name], keep_ends))
    for messages, awaited, _ in cases["chats"]:
        said = [message for message in messages if message["role"] != "system"]
        text = template.render(messages=said, eos_token="</s>")
        assert harness.rendered(settings, messages, awaited) == (
            text if awaited else text.removesuffix("</s>")
        )


class Generation(jinja2.ext.Extension):
    """transformers' {% generation %}, which marks a part and leaves it as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


def test_roles_that_do_not_alternate_are_one_sentence(subject):
    user = {"role": "user", "content": "a"}
    with pytest.raises(UserError, match="here they are user, user; see"):
        harness.rendered(subject.settings, [user, user])


def test_an_end_of_text_in_a_text_is_its_id(subject):
    encode = harness._Marked(subject.tokenizer).encode
    a, b = subject.tokenizer.encode(["The garden", " was dry"])
    assert encode(["The garden</s> was dry", "", "</s></s>"]) == [[*a, EOS, *b], [], [EOS, EOS]]
    said = harness.log_likelihoods(subject, [("", "</s>The garden"), ("</s>", "The garden")])
    assert said[0] == said[1]


def test_a_continuation_longer_than_the_context_is_scored_in_windows(subject, capsys):
    text = "The library opens at nine and closes when the last reader goes home. " * 6
    whole, short, empty = harness.log_likelihoods(
        subject, [("", text), ("a" * 200, "b"), ("The", "")]
    )
    assert [whole[0]] == pytest.approx(harness.rolling_log_likelihoods(subject, [text]))
    assert empty == (0, True)
    said = capsys.readouterr().err
    assert "1 continuations are longer than 48 tokens and scored in windows" in said
    assert "1 contexts lose their beginning" in said
    assert "1 continuations are empty" in said
    assert short[0] < 0


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 17, 30])
def test_windows_score_each_id_once_with_most_before_it(length):
    ids = list(range(100, 100 + length))
    found = windows([EOS], ids, 8)
    assert [i for _, scored in found for i in scored] == ids
    assert [len(given) + len(scored) for given, scored in found[1:]] == [9] * (len(found) - 1)
    whole = [EOS, *ids]
    for given, scored in found:
        end = whole.index(scored[-1]) + 1
        assert [*given, *scored] == whole[max(0, end - 9) : end]


def test_a_stop_string_is_found_where_later_bytes_make_it_no_text(subject):
    vocabulary = subject.tokenizer
    new_line, cut = vocabulary.encode(["\n", "\N{PEACH}"])
    assert [vocabulary.pieces[i] for i in new_line] == [b"\n"]
    ids = [*vocabulary.encode(["The"])[0], *new_line, *cut[:2]]
    assert decode(vocabulary, ids) == "The" + "\ufffd" * 3
    assert until(vocabulary, ids, ("\n",)) == ("The", True)
    assert until(vocabulary, ids, ("\n\n", "")) == ("The" + "\ufffd" * 3, False)


def test_more_tokens_than_the_context_are_one_sentence(subject):
    asked = [Question([5], (), 48)]
    with pytest.raises(UserError, match=r"answers of 48 tokens leave no room.*1 to 47"):
        answer(subject.decoder, subject.for_decoding, subject.tokenizer, asked, 1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_beams": 4}, "num_beams = 4"),
        ({"until": ["\n"], "min_p": 0.1}, "min_p"),
        ({"do_sample": True, "temperature": -1}, "temperature"),
    ],
)
def test_a_setting_without_meaning_is_one_sentence(subject, settings, said):
    with pytest.raises(UserError, match=said):
        harness.answers_until(subject, [("a", settings)])


@pytest.mark.parametrize(
    ("name", "asked", "first"),
    [
        ("loglikelihood", ("The garden", " was dry"), (-2.5, True)),
        ("loglikelihood_rolling", ("The garden was dry",), -2.5),
        ("generate_until", ("The garden", {"max_gen_toks": 4}), " was dry"),
    ],
)
def test_a_batch_is_in_lm_evals_cache_before_the_next_is_asked(
    subject, monkeypatch, name, asked, first
):
    """Whatever ends the call then, which may take hours."""

    def scored(subject, pairs, length, rows, done):
        done({1: Score(-2.5, 3, True)})
        raise KeyboardInterrupt

    def answered(decoder, params, tokenizer, questions, batch, sampling, done):
        done({1: Answer(" was dry", 3, "eos", 0)})
        raise KeyboardInterrupt

    monkeypatch.setattr(harness, "likelihoods", scored)
    monkeypatch.setattr(harness, "answer", answered)
    model, kept = harness._adapter(type("LM", (), {}))(subject), []
    model.cache_hook = SimpleNamespace(add_partial=lambda *one: kept.append(one))
    with pytest.raises(KeyboardInterrupt):
        getattr(model, name)([SimpleNamespace(args=("other", *asked[1:])),
                              SimpleNamespace(args=asked)])  # fmt: skip
    assert kept == [(name, asked, first)]


def test_draws_of_the_same_prompt_differ_and_come_again(subject):
    asked = [("The garden", {"do_sample": True, "temperature": 1.5, "max_gen_toks": 12})] * 4
    found = harness.answers_until(subject, asked)
    assert len(set(found)) > 1
    assert harness.answers_until(subject, asked) == found


def test_without_lm_eval_it_is_one_sentence(subject, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r'not installed; pip install "polylm_jax\[eval\]"'):
        harness.evaluate_with(lambda batch: subject, "run", {}, ["--tasks", "xcopa_it"])


def test_lm_evals_flags_stand_after_two_dashes(subject, tmp_path, capsys):
    with pytest.raises(UserError, match="--model is this run's already"):
        harness.evaluate_with(lambda batch: subject, "run", {}, ["--model=hf"])
    assert main(["lm-eval", f"--run={tmp_path}", "--tasks", "xcopa_it"]) == 1
    assert "--tasks is not a flag of `polylm lm-eval`" in capsys.readouterr().err
    assert main(["lm-eval", f"--run={tmp_path}", "--", "--tasks", "xcopa_it"]) == 1
    assert f"there is no run in {tmp_path}" in capsys.readouterr().err


@pytest.mark.skipif(not importlib.util.find_spec("lm_eval"), reason="lm-eval is not installed")
def test_lm_evals_own_program_asks_all_three_calls(subject, tmp_path, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    rows = [{"q": f"The garden {n}", "a": " was dry", "b": " is"} for n in range(5)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{q}}",
    }
    kinds = {
        "chosen": {
            "output_type": "multiple_choice",
            "doc_to_choice": ["{{a}}", "{{b}}"],
            "doc_to_target": 0,
        },
        "written": {
            "output_type": "generate_until",
            "doc_to_target": "{{a}}",
            "generation_kwargs": {"until": ["e"], "max_gen_toks": 8},
            "metric_list": [{"metric": "exact_match"}],
        },
        "rolled": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{q}}",
            "metric_list": [{"metric": "bits_per_byte"}],
        },
    }
    for name, kind in kinds.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"task": name} | common | kind))
    arguments = ["--tasks", ",".join(kinds), "--include_path", str(tmp_path), "--log_samples"]
    arguments += ["--output_path", str(tmp_path / "out"), "--apply_chat_template"]
    make = lambda batch: subject  # noqa: E731
    assert harness.evaluate_with(make, "runs/x", {"model_revision": "step 3"}, arguments) == 0
    [results] = (tmp_path / "out").glob("*/results_*.json")
    found = json.loads(results.read_text())
    assert set(found["results"]) == set(kinds)
    assert found["config"]["model_revision"] == "step 3"
    assert found["chat_template"] == chat.template(chat.FORMATS["multialpaca"], False)
    [samples] = (tmp_path / "out").glob("*/samples_written_*.jsonl")
    first = json.loads(samples.read_text().splitlines()[0])
    assert first["arguments"]["gen_args_0"]["arg_0"] == "The garden 0\n\n"
    assert "e" not in first["resps"][0][0]
    assert not {"torch", "transformers"} & set(sys.modules)
    with pytest.raises(UserError, match=r"lm-eval ended with .*nowhere"):
        harness.evaluate_with(make, "x", {}, ["--tasks", "nowhere"])
