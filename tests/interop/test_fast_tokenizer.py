"""The exported tokenizer.json gives the ids of raw sentencepiece, in the `tokenizers` library."""

import io
import json
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer

from polylm_jax.data import corpus, tokenizer
from polylm_jax.interop.fast_tokenizer import tokenizer_json
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


def texts():
    """Over 1,000 texts in 18 languages: each of our sentences alone and before four others."""
    found = [*AWKWARD]
    for sentences in SENTENCES.values():
        for i, sentence in enumerate(sentences):
            others = [sentences[(i + step) % len(sentences)] for step in range(1, 5)]
            found += [sentence, *(f"{sentence} {other}" for other in others)]
    return found


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_equal_those_of_raw_sentencepiece(kind, algorithm):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in texts() for line in text.split("\n") if line),
        model_writer=model,
        model_type=algorithm,
        vocab_size=1700,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        byte_fallback=True,
        minloglevel=2,
        **KINDS[kind],
    )
    raw = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    fast = Tokenizer.from_str(json.dumps(tokenizer_json(model.getvalue())))
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
