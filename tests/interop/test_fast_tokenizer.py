"""The exported tokenizer.json gives the ids of raw sentencepiece, in the `tokenizers` library.

What it cannot say is known by name.
"""

import json
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer

from polylm_jax.data import corpus, tokenizer
from polylm_jax.errors import UserError
from polylm_jax.interop.fast_tokenizer import compared, differing, tokenizer_json
from polylm_jax.interop.hard_texts import HARD_TEXTS
from tests import scripted
from tests.data.sentences import SENTENCES

AWKWARD = ["", " ", "  a", "a  ", "\n", "\t tab", "日本語 ﾊﾝｶｸ", "a\u00a0b", tokenizer.ROUND_TRIP]
CORPUS = Path(__file__).parents[2] / "data" / "corpus"
KINDS = {
    "ours": {
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
    },
    "Llama's": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "the trainer's defaults": {"normalization_rule_name": "nmt_nfkc"},
}
# no charsmap, but spaces removed; symbols of the user's own
OTHERS = {
    "nfkc": {"normalization_rule_name": "nfkc", "add_dummy_prefix": False},
    "symbols": KINDS["ours"] | {"user_defined_symbols": ["<|user|>", "\n", "  ", "<sep> x"]},
    "with <": KINDS["ours"] | {"more": ["a < b > c"] * 99},
}
ACCENTS = "q\u0323\u0307"  # the one hard text that a normaliser's file gets wrong


def texts():
    """Over 1,000 texts in 18 languages: each of our sentences alone and before four others."""
    found = [*AWKWARD]
    for sentences in SENTENCES.values():
        for i, sentence in enumerate(sentences):
            others = [sentences[(i + step) % len(sentences)] for step in range(1, 5)]
            found += [sentence, *(f"{sentence} {other}" for other in others)]
    return found


def trained(algorithm, more=(), **flags):
    lines = [line for text in [*texts(), *more] for line in text.split("\n") if line]
    size = {"model_type": algorithm, "vocab_size": 1700, "sentence_iterator": iter(lines)}
    return scripted.tokenizer(**scripted.SPACED | size | flags)[0]


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
@pytest.mark.parametrize("kind", KINDS | OTHERS)
def test_hard_texts_get_the_same_ids_and_come_back(kind, algorithm):
    model = trained(algorithm, **(KINDS | OTHERS)[kind])
    content = tokenizer_json(model)
    others = differing(model, content)
    normalised = "nfkc" in (KINDS | OTHERS)[kind]["normalization_rule_name"]
    assert [ACCENTS in text for text in others] == [True] * normalised
    raw = sentencepiece.SentencePieceProcessor(model_proto=model)
    fast = Tokenizer.from_str(json.dumps(content))
    for text in HARD_TEXTS:
        ids = raw.encode(text)
        assert fast.decode(ids) == raw.decode(ids), text
    said = compared(model, content)
    assert ("gives other ids" in said and "q̣̇" in said) if others else "gives the ids" in said


def test_what_looks_like_a_byte_is_text_whether_or_not_its_letters_are_pieces():
    for flags in (KINDS["ours"], OTHERS["with <"]):
        fast = Tokenizer.from_str(json.dumps(tokenizer_json(trained("unigram", **flags))))
        for text in ("<0x0A>", "code <0x41> x", "<0xE4><0xBD><0xA0>"):
            assert fast.decode(fast.encode(text).ids) == text


def test_a_difference_is_found_and_said():
    """Were it not for their scores, bytes would be found in a text."""
    model = trained("unigram", **OTHERS["with <"])
    content = tokenizer_json(model)
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = [[piece, max(score, -20.0)] for piece, score in vocabulary]
    assert "<0x0A>" in differing(model, content)
    assert "gives other ids than tokenizer.model for 3 of" in compared(model, content)


@pytest.mark.parametrize(
    ("algorithm", "flags", "sentence"),
    [
        ("unigram", {"treat_whitespace_as_suffix": True}, "puts spaces behind words"),
        ("unigram", {"denormalization_rule_tsv": "denormal.tsv"}, "changes texts when it decodes"),
        ("char", {}, "is neither unigram nor BPE"),
    ],
)
def test_flags_that_the_file_has_no_words_for_are_refused(
    algorithm, flags, sentence, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("denormal.tsv").write_text("61\t62\n")
    with pytest.raises(UserError, match=sentence):
        tokenizer_json(trained(algorithm, hard_vocab_limit=algorithm != "char", **flags))


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_equal_those_of_raw_sentencepiece(kind, algorithm):
    model = trained(algorithm, **KINDS[kind])
    raw = sentencepiece.SentencePieceProcessor(model_proto=model)
    fast = Tokenizer.from_str(json.dumps(tokenizer_json(model)))
    assert len(texts()) > 1000
    for text in texts():
        ids = raw.encode(text)
        assert fast.encode(text).ids == ids, text
        assert fast.decode(ids) == raw.decode(ids), text


def test_special_ids_are_what_they_are_in_sentencepiece(tiny):
    ours = tokenizer.load(str(tiny["tokenizer.path"]))
    fast = Tokenizer.from_str(json.dumps(tokenizer_json(ours.model)))
    assert [fast.token_to_id(piece) for piece in ("<unk>", "<s>", "</s>")] == [0, 1, 2]
    assert fast.get_vocab_size() == ours.size
    assert fast.encode("a</s>").ids[-1] == tokenizer.EOS
    assert fast.decode([*ours.encode(["Die"])[0], tokenizer.EOS]) == "Die"


@pytest.mark.skipif(not CORPUS.is_dir(), reason="`make demo` fetches the corpus")
def test_real_sentences_of_the_corpus_get_the_same_ids(tiny):
    ours = tokenizer.load(str(tiny["tokenizer.path"]))
    fast = Tokenizer.from_str(json.dumps(tokenizer_json(ours.model)))
    lines = []
    for source in corpus.sources(str(CORPUS)):
        documents = corpus.documents(str(CORPUS), source, "valid")
        found = [line for text in documents for line in text.split("\n") if line.strip()]
        lines += found[:60]
    assert len(lines) > 1000
    ids = [encoding.ids for encoding in fast.encode_batch(lines)]
    assert ids == ours.encode(lines)
