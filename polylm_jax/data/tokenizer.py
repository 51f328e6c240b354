"""The tokenizer: one SentencePiece model for all languages, trained on a balanced sample.

Ids are the release's: `<unk>` 0, `<s>` 1 (never written), `</s>` 2, and no padding id. Text
comes back exactly as it went in, byte for byte, with one exception that is SentencePiece's
own: U+2581 (▁), its mark for a space, comes back as a space.
"""

import math
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import sha256
from io import BytesIO
from itertools import repeat
from typing import Annotated

import numpy as np
import sentencepiece

from polylm_jax.data import corpus
from polylm_jax.data.documents import batches, stretches
from polylm_jax.data.languages import is_bilingual
from polylm_jax.data.shards import Text
from polylm_jax.errors import UserError
from polylm_jax.files import (
    MaybePlace,
    Place,
    already_made,
    new_folder,
    opened,
    write_manifest,
)
from polylm_jax.ranges import TINY, OneOf, Range, check

EOS = 2
MODEL = "tokenizer.model"

# The trainer skips lines over 4,192 bytes; UTF-8 needs at most 4 bytes a character.
LINE_CHARACTERS = 1024

# Text is tokenized in batches of about this size, for Python's integers are large.
BATCH_CHARACTERS = 1_000_000

# A text is tokenized in stretches of at most this size. The pieces are the same, but for what
# SentencePiece rounds: it sums float32 from a text's begin, so that the longer the text, the
# more often a unigram model takes pieces that are not the likeliest.
AT_ONCE = 2**16

# How much text is read for a sample of a source in many shards, and from how many at least.
READ_PER_SAMPLED, LEAST_FILES = 4, 16

# Floats are summed per thread, so the number of threads is part of the result.
TRAINER_THREADS = 16

# What a lossy tokenizer changes: spaces, tabs, newlines, ligatures, NFD, emoji, controls.
ROUND_TRIP = " two  spaces\tand\nlines\r\n ﬁ①e\u0301 👩‍👧 שלום ไทย \x00\u3000"


@dataclass(frozen=True)
class TokenizerTraining:
    """How a tokenizer is made.

    path: the folder that will hold `tokenizer.model` and `manifest.json`.
    algorithm: "unigram", which the released file is, or "bpe", which the paper says (§3.1).
    pieces: size of the vocabulary, bytes and special ids included; 256,000 in the paper.
    exponent: a source of n bytes is sampled in proportion to n ** exponent (XLM-R's 0.3).
    sample_megabytes: most text shown to the trainer, in millions of UTF-8 bytes.
    model: an existing SentencePiece file to take instead of training one.
    """

    path: Place = "data/tokenizer"
    algorithm: Annotated[str, OneOf("unigram", "bpe")] = "unigram"
    pieces: Annotated[int, Range(1)] = 256_000
    exponent: Annotated[float, Range(0, 10)] = 0.3
    sample_megabytes: Annotated[float, Range(TINY, 1e6)] = 100.0
    model: MaybePlace = ""

    def __post_init__(self) -> None:
        check(self, "tokenizer")


@dataclass(frozen=True)
class Tokenizer:
    """A SentencePiece model, given as the content of its file. Safe to share and to pickle."""

    model: bytes = field(repr=False)

    @cached_property
    def processor(self) -> sentencepiece.SentencePieceProcessor:
        return sentencepiece.SentencePieceProcessor(model_proto=self.model)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the model file, in hexadecimal."""
        return sha256(self.model).hexdigest()

    @property
    def size(self) -> int:
        return self.processor.get_piece_size()

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without `<s>` or `</s>`; spreads the texts over all cores."""
        return self.processor.encode(texts)

    @cached_property
    def _inside(self) -> sentencepiece.SentencePieceProcessor:
        processor = sentencepiece.SentencePieceProcessor(model_proto=self.model)
        processor.override_normalizer_spec(add_dummy_prefix=False)
        return processor

    def encode_inside(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text where it goes on from other text, so that no space is put before it."""
        return self._inside.encode(texts)

    def decode(self, ids: list[list[int]]) -> list[str]:
        """The text of each list of ids, read as a text's beginning; special ids give nothing."""
        unknown = self.processor.unk_id()
        return self.processor.decode([[i for i in text if i != unknown] for text in ids])

    @property
    def adds_space(self) -> bool:
        """Whether a space is put before a text, and taken away again, as in the release."""
        return self.processor.encode("a", out_type=str)[0].startswith("▁")

    @cached_property
    def drops_spaces(self) -> float:
        """How many spaces are taken away where a text begins, when ids become text."""
        if self.decode(self.encode([" a"])) == ["a"]:
            return math.inf
        return 1 if self.adds_space else 0

    @cached_property
    def pieces(self) -> list[bytes]:
        """UTF-8 bytes of text that each id stands for; a special id stands for nothing.

        A byte piece is one byte, which may be a part of a character only.
        """
        processor = self.processor

        def text(piece: int) -> bytes:
            if processor.is_control(piece) or processor.is_unknown(piece):
                return b""
            name = processor.id_to_piece(piece)
            if processor.is_byte(piece):
                return bytes([int(name[3:-1], 16)])  # <0xE4>
            return name.replace("▁", " ").encode()

        return [text(piece) for piece in range(self.size)]

    @cached_property
    def piece_bytes(self) -> np.ndarray:
        """How many bytes of text each id stands for, int32 [size].

        Sums to the length of the text for a tokenizer trained here (▁ counts as one space).
        """
        return np.array([len(piece) for piece in self.pieces], np.int32)


def train(settings: TokenizerTraining, corpus_path: str) -> Tokenizer:
    """Make the tokenizer that the settings describe in `settings.path`, and return it.

    The same settings and corpus give the same file, byte for byte. A folder that already
    holds this very tokenizer is kept as it is; one that holds another is a UserError, and so
    is a vocabulary that the text cannot fill.
    """
    given = load(settings.model) if settings.model else None
    if given:
        made_from: dict = {"model": given.fingerprint}
    else:
        made_from = asdict(settings) | {"corpus": corpus.manifest(corpus_path)["sha256"]}
        del made_from["path"]
    if already_made(settings.path, made_from):
        print(f"tokenizer: {settings.path} is already made; kept.")
        return load(settings.path)
    tokenizer = given or _fit(settings, corpus_path)
    with new_folder(settings.path) as folder:
        (folder / MODEL).write_bytes(tokenizer.model)
        write_manifest(
            folder,
            {
                "made_from": made_from,
                "pieces": tokenizer.size,
                "fingerprint": tokenizer.fingerprint,
            },
        )
    print(f"tokenizer: {tokenizer.size:,} pieces in {settings.path}.")
    return tokenizer


def load(path: str) -> Tokenizer:
    """Open a tokenizer, given its folder or its `.model` file, local or where fsspec reads.

    Raises a UserError where there is none, or where `</s>` is not id 2; says so on stderr
    where text would not survive encoding and decoding.
    """
    files, file = opened(path)
    file = f"{file}/{MODEL}" if files.isdir(file) else file
    try:
        tokenizer = Tokenizer(files.cat_file(file))
    except FileNotFoundError:
        raise UserError(f"There is no tokenizer at {path}; run polylm tokenizer first.") from None
    try:
        # SentencePiece takes an empty file for a model, and then crashes the process.
        eos = tokenizer.processor.eos_id() if tokenizer.model else None
    except (RuntimeError, UnicodeDecodeError):
        eos = None
    if eos is None:
        raise UserError(f"{file} is not a SentencePiece model; give the file a trainer wrote.")
    if eos != EOS:
        raise UserError(
            f"{file} has </s> at id {eos}; train it with unk_id=0, bos_id=1, eos_id={EOS}."
        )
    if tokenizer.decode(tokenizer.encode([ROUND_TRIP])) != [ROUND_TRIP]:
        print(f"warning: {file} is lossy: it changes spaces or characters.", file=sys.stderr)
    return tokenizer


def bytes_per_token(
    tokenizer: Tokenizer, corpus_path: str, split: str = "valid"
) -> dict[str, float]:
    """UTF-8 bytes of text per token (`</s>` not counted) of each source that has text."""
    ratios = {}
    for source in corpus.sources(corpus_path):
        size = tokens = 0
        texts = corpus.documents(corpus_path, source, split)
        parts = (part for text in texts for part in stretches(text, AT_ONCE))
        for batch in batches(parts, len, BATCH_CHARACTERS):
            size += sum(len(text.encode()) for text in batch)
            tokens += sum(map(len, tokenizer.encode(batch)))
        if tokens:
            ratios[source] = size / tokens
    return ratios


def _fit(settings: TokenizerTraining, corpus_path: str) -> Tokenizer:
    """Sample the corpus and run SentencePiece's trainer on it."""
    rates, size = _rates(settings, corpus_path)
    print(
        f"tokenizer: training {settings.pieces:,} {settings.algorithm} pieces on about "
        f"{size / 1e6:,.1f} MB of {corpus_path} …",
        flush=True,
    )
    model, failed = BytesIO(), list[BaseException]()

    def sample() -> Iterator[str]:
        try:
            yield from _sample(rates, corpus_path)
        except BaseException as error:  # which the trainer takes for the end of the text
            failed.append(error)

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sample(),
            model_writer=model,
            model_type=settings.algorithm,
            vocab_size=settings.pieces,
            num_threads=TRAINER_THREADS,
            unk_id=0,
            bos_id=1,
            eos_id=EOS,
            pad_id=-1,
            byte_fallback=True,
            split_digits=True,
            # What follows makes it lossless.
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            minloglevel=2,
        )
    except RuntimeError as error:
        if not failed:
            raise _explained(error, settings.pieces, corpus_path) from error
    if failed:
        raise failed[0]
    return Tokenizer(model.getvalue())


def _explained(error: RuntimeError, pieces: int, corpus_path: str) -> UserError:
    """The trainer's complaint about the vocabulary's size in words that name the mend."""
    if most := re.search(r"a value <= (\d+)", str(error)):
        return UserError(
            f"tokenizer.pieces is {pieces:,}, but the text of {corpus_path} yields about "
            f"{int(most[1]):,} at most; ask for fewer pieces or give more text."
        )
    if least := re.search(r"(\d+) vs (\d+)\. Increase vocab_size", str(error)):
        return UserError(
            f"tokenizer.pieces is {pieces:,}, but the bytes and characters of "
            f"{corpus_path} alone need {int(least[2]):,}; ask for more pieces."
        )
    reason = str(error).split("] ")[-1].strip() or "there was none to train on"
    return UserError(
        f"No tokenizer could be trained on the text of {corpus_path} ({reason}); give more text or "
        "raise tokenizer.sample_megabytes."
    )


def _sample(rates: dict[str, float], corpus_path: str) -> Iterator[str]:
    """Lines of training text, of each source at its rate.

    Newlines are cut away, so that they stay byte pieces (`<0x0A>`) as in the release. A source
    that should weigh more than it has text is shown several times: the trainer only counts, and
    on the small corpus held-out text took fewer tokens so (3.05 bytes per token on average)
    than with the large sources thinned to match (3.02) or with all text once (2.96). The draw
    of documents depends on the source's name and nothing else.
    """
    for source, rate in rates.items():
        chance = random.Random(source)
        files, often = _spread(corpus.files_of(corpus_path, source, "train"), source, rate)
        for text in corpus.texts_in(files):
            copies = int(often + chance.random())
            for line in text.split("\n") if copies else ():
                for start in range(0, len(line), LINE_CHARACTERS):
                    yield from repeat(line[start : start + LINE_CHARACTERS], copies)


def _spread(files: list[Text], source: str, rate: float) -> tuple[list[Text], float]:
    """The files of a source that its sample is drawn from, and the rate in them.

    They have several times as much text as is wanted, so that no file weighs much, and no more:
    of a source in thousands of shards most are never opened.
    """
    count = max(LEAST_FILES, math.ceil(len(files) * rate * READ_PER_SAMPLED))
    if count >= len(files):
        return files, rate
    drawn = random.Random(f"{source}'s files").sample(range(len(files)), count)
    chosen = [files[number] for number in sorted(drawn)]
    size, read = (sum(file.content for file in some) for some in (files, chosen))
    return chosen, rate * size / read


def _rates(settings: TokenizerTraining, corpus_path: str) -> tuple[dict[str, float], float]:
    """How often the trainer sees each document of each source on average, and bytes of all.

    Bilingual sources have the same languages once more: they count only where all are such.
    """
    sizes = {
        source: entry["train"]["bytes"]
        for source, entry in corpus.manifest(corpus_path)["sources"].items()
    }
    sizes = {name: size for name, size in sizes.items() if not is_bilingual(name)} or sizes
    if not sum(sizes.values()):
        raise UserError(f"There is no text in {corpus_path}; run polylm corpus first.")
    weights = {source: size**settings.exponent for source, size in sizes.items() if size}
    budget = min(settings.sample_megabytes * 1e6, sum(sizes.values()))
    rates = {
        source: budget * weight / sum(weights.values()) / sizes[source]
        for source, weight in weights.items()
    }
    return rates, budget
