import json
import pickle
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from polylm_jax.data import corpus as corpus_room
from polylm_jax.data import shards
from polylm_jax.data import tokenizer as room
from polylm_jax.data.tokenizer import EOS, TokenizerTraining, bytes_per_token, load, train
from polylm_jax.errors import UserError
from tests.data.sentences import SENTENCES

AWKWARD = [
    "",
    " ",
    "  two  spaces  ",
    "a\nb\n\n\n  c\r\nd\te\t\t",
    "👩‍👩‍👧 🏳️‍🌈 🇩🇪 ❤️",
    "שלום \u200f(עולם)\u200e مرحبا ١٢٣",
    "e\u0301 vs é, \u0e33 \u0e4d\u0e32, ﬁ ① 𝔘 Å",
    "\x00\x01\x1f\x7f\x85\xa0\u2028\u3000\ufeff\ufffd\ufffe",
    "</s> <s> <unk> <0x0A>",
    "\U0010ffff\U0001f9ff",
    "def f(x):\n    return 1234567890 * x  # π\n",
    "a" * 5000,
]


def write_corpus(path, texts):
    """A corpus on disk with the same documents to train on and to validate."""
    sources = {}
    for source, documents in texts.items():
        (path / source).mkdir(parents=True)
        size = sum(len(text.encode()) for text in documents)
        lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
        for split in ("train", "valid"):
            (path / source / f"{split}.jsonl").write_text(lines)
        counts = {"documents": len(documents), "bytes": size}
        sources[source] = {"train": counts, "valid": counts}
    content = {"sha256": str(path), "sources": sources}
    (path / "manifest.json").write_text(json.dumps(content))
    return str(path)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    texts = {
        code: ["\n".join(sentences[i:] + sentences[:i]) for i in range(5)]
        for code, sentences in SENTENCES.items()
    }
    texts["en-de"] = ["Good morning.\nGuten Morgen.\nQuagga! Quagga! Quagga!"] * 10
    return write_corpus(tmp_path_factory.mktemp("text") / "corpus", texts)


@pytest.fixture(scope="session", params=["unigram", "bpe"])
def made(request, corpus, tmp_path_factory):
    settings = TokenizerTraining(
        path=str(tmp_path_factory.mktemp("tokenizer") / request.param),
        algorithm=request.param,
        pieces=1500,
    )
    return settings, train(settings, corpus)


def test_ids_are_those_of_plain_sentencepiece(made):
    settings, tokenizer = made
    plain = sentencepiece.SentencePieceProcessor(model_file=f"{settings.path}/tokenizer.model")
    texts = [text for sentences in SENTENCES.values() for text in sentences] + AWKWARD
    assert tokenizer.encode(texts) == [plain.encode_as_ids(text) for text in texts]
    assert tokenizer.size == 1500
    assert [plain.id_to_piece(i) for i in range(4)] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert (plain.unk_id(), plain.bos_id(), plain.eos_id(), plain.pad_id()) == (0, 1, EOS, -1)


def test_text_comes_back_and_bytes_add_up(made):
    _, tokenizer = made
    texts = [text for sentences in SENTENCES.values() for text in sentences] + AWKWARD
    ids = tokenizer.encode(texts)
    assert tokenizer.decode(ids) == texts
    assert tokenizer.piece_bytes.dtype == np.int32
    assert [tokenizer.piece_bytes[i].sum() for i in ids] == [len(text.encode()) for text in texts]
    assert not tokenizer.piece_bytes[:3].any()
    assert {i for text in ids for i in text}.isdisjoint({0, 1, EOS})


def test_the_mark_of_a_space_is_the_one_character_that_is_lost(made):
    _, tokenizer = made
    assert tokenizer.decode(tokenizer.encode(["a▁b"])) == ["a b"]


def test_newlines_tabs_and_digits_stand_alone(made):
    settings, tokenizer = made
    plain = sentencepiece.SentencePieceProcessor(model_file=f"{settings.path}/tokenizer.model")
    pieces = [plain.id_to_piece(i) for i in tokenizer.encode(["2024\n\t7"])[0]]
    assert pieces == ["2", "0", "2", "4", "<0x0A>", "<0x09>", "7"]


def test_training_twice_gives_the_same_file(made, corpus, tmp_path):
    settings, tokenizer = made
    again = TokenizerTraining(str(tmp_path / "again"), settings.algorithm, settings.pieces)
    assert train(again, corpus) == tokenizer
    assert sorted(f.name for f in Path(again.path).iterdir()) == [
        "manifest.json",
        "tokenizer.model",
    ]
    assert [f.name for f in tmp_path.iterdir()] == ["again"]


def test_a_tokenizer_that_is_there_is_kept_and_another_is_not_overwritten(made, corpus, capsys):
    settings, tokenizer = made
    before = (Path(settings.path) / "tokenizer.model").stat().st_mtime_ns
    assert train(settings, corpus) == tokenizer
    assert "kept" in capsys.readouterr().out
    assert (Path(settings.path) / "tokenizer.model").stat().st_mtime_ns == before
    other = TokenizerTraining(settings.path, settings.algorithm, pieces=1400)
    with pytest.raises(UserError, match="delete it or give another path"):
        train(other, corpus)


def test_a_file_of_ones_own_is_taken_as_it_is(made, corpus, tmp_path):
    settings, tokenizer = made
    given = f"{settings.path}/tokenizer.model"
    taken = train(TokenizerTraining(path=str(tmp_path / "taken"), model=given), corpus)
    assert taken == load(str(tmp_path / "taken")) == load(given) == tokenizer
    assert pickle.loads(pickle.dumps(taken)).encode(["ciao"]) == tokenizer.encode(["ciao"])


def test_bytes_per_token(made, corpus):
    settings, tokenizer = made
    plain = sentencepiece.SentencePieceProcessor(model_file=f"{settings.path}/tokenizer.model")
    ratios = bytes_per_token(tokenizer, corpus)
    assert set(ratios) == {*SENTENCES, "en-de"}
    texts = ["\n".join(SENTENCES["th"][i:] + SENTENCES["th"][:i]) for i in range(5)]
    tokens = sum(len(plain.encode_as_ids(text)) for text in texts)
    assert ratios["th"] == sum(len(text.encode()) for text in texts) / tokens


def test_bilingual_text_is_not_sampled_and_small_sources_are_raised(tmp_path):
    path = write_corpus(
        tmp_path / "corpus",
        {"en": ["large\n" + "x" * 3000] * 200, "ko": ["작은"] * 1000, "en-ko": ["both"] * 1000},
    )
    lines = list(room._sample(room._rates(TokenizerTraining(exponent=0.3), path)[0], path))
    assert "both" not in lines
    assert max(len(line.encode()) for line in lines) <= 4096
    english = sum(len(line.encode()) for line in lines if "작은" not in line)
    korean = sum(len(line.encode()) for line in lines if "작은" in line)
    assert english / korean == pytest.approx((200 * 3006 / 6000) ** 0.3, rel=0.1)


@pytest.mark.parametrize("bad", ['{"te', '{"text": 5}', "[1]"])
def test_text_that_is_damaged_is_no_end_of_the_text(tmp_path, bad):
    """The trainer takes whatever goes wrong in what gives it lines for their end."""
    path = write_corpus(tmp_path / "corpus", {"en": ["some text"] * 9})
    file = tmp_path / "corpus" / "en" / "train.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], bad, *lines[1:]]) + "\n")
    told = rf"train.jsonl is damaged at its byte {len(lines[0]) + 1}; make the corpus again"
    with pytest.raises(UserError, match=told):
        train(TokenizerTraining(path=str(tmp_path / "tokenizer"), pieces=270), str(path))


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_more_pieces_than_the_text_holds_names_the_most(corpus, tmp_path, algorithm):
    settings = TokenizerTraining(str(tmp_path / "much"), algorithm, pieces=256_000)
    with pytest.raises(UserError, match=r"256,000, but the text of .* about \d+,\d+ at most"):
        train(settings, corpus)
    assert not list(tmp_path.iterdir())


def test_too_few_pieces_names_the_least(corpus, tmp_path):
    with pytest.raises(UserError, match=r"is 300, but the bytes and characters of .* need 9\d\d;"):
        train(TokenizerTraining(str(tmp_path / "few"), pieces=300), corpus)


def foreign_model(**flags):
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES["en"]),
        model_writer=model,
        vocab_size=400,
        byte_fallback=True,
        minloglevel=2,
        **flags,
    )
    return model.getvalue()


def test_another_end_of_text_is_refused(tmp_path):
    file = tmp_path / "t5.model"
    file.write_bytes(foreign_model(pad_id=0, eos_id=1, unk_id=2, bos_id=-1))
    with pytest.raises(UserError, match=r"t5.model has </s> at id 1; train it with"):
        load(str(file))


def test_a_lossy_tokenizer_is_taken_with_a_warning(tmp_path, capsys):
    file = tmp_path / "lossy.model"
    file.write_bytes(foreign_model())
    load(str(file))
    assert "lossy.model is lossy" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"no model at all"])
def test_a_file_that_is_no_model(tmp_path, content):
    file = tmp_path / "some.model"
    file.write_bytes(content)
    with pytest.raises(UserError, match="not a SentencePiece model"):
        load(str(file))


def test_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer at .*nowhere; run polylm tokenizer"):
        load(str(tmp_path / "nowhere"))


def test_unknown_algorithm():
    with pytest.raises(UserError, match='"wordpiece"; choose one of unigram, bpe'):
        TokenizerTraining(algorithm="wordpiece")


def test_of_many_shards_few_are_read_and_the_sample_is_as_large(tmp_path, monkeypatch):
    path, texts = str(tmp_path / "corpus"), [f"Satz {n} von vielen." for n in range(6000)]
    each = [
        shards.write_shard(path, "de", n, 200, [(t, "x", 0) for t in texts[n::200]], 0, ".jsonl")
        for n in range(200)
    ]
    shards.write_manifest(path, {"de": each})
    opened, plain = [], shards.lines_of
    monkeypatch.setattr(corpus_room, "lines_of", lambda text: opened.append(text) or plain(text))
    sampled = list(room._sample({"de": 0.05}, path))
    assert len(opened) == len(set(opened)) == 200 * 0.05 * room.READ_PER_SAMPLED
    assert len(sampled) == pytest.approx(0.05 * len(texts), rel=0.2)
    assert sampled == list(room._sample({"de": 0.05}, path))
    assert list(room._sample({"de": 1.0}, path)) == list(corpus_room.documents(path, "de", "train"))
