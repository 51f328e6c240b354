"""A SentencePiece model as the tokenizer.json of Hugging Face's `tokenizers`.

Everything is taken from the model's own flags: its normaliser, the space it puts before the
text, the spaces it removes, unigram or BPE, byte pieces. Two things cannot be written down there,
so a few texts get other ids, and `differing` says which of a list: SentencePiece adds scores as
float32 and `tokenizers` as float64, so that of cuts whose sums are equal (mostly of runs of one
character) another may win; and a normaliser's letters with several accents are mapped in another
order.
"""

import importlib.util
import json
import unicodedata
from base64 import b64encode
from typing import Any

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

from polylm_jax.errors import UserError
from polylm_jax.interop.hard_texts import HARD_TEXTS

_UNIGRAM, _BPE = 1, 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_SPACE = "▁"
# The half-width katakana and, of two bytes, its marks: what `tokenizers` maps one by one.
_KANA, _MARKS = map(chr, range(0xFF66, 0xFF9E)), "\uff9e\uff9f"
_KANA_WITH_MARKS = [kana + mark for kana in _KANA for mark in _MARKS]
# Text that looks like a byte piece, cut so that it is none.
_LIKE_A_BYTE = "<(?=0x[0-9A-F]{2}>)"


def tokenizer_json(model: bytes) -> dict[str, Any]:
    """The content of tokenizer.json. model: the content of tokenizer.model.

    `<s>` and `</s>` are known in text too, which SentencePiece does not do; chat templates need
    it. UserError for a model with a flag that the file has no words for.
    """
    parsed = sentencepiece_model_pb2.ModelProto.FromString(model)
    if what := beyond(parsed):
        raise UserError(
            f"the run's tokenizer {what}, which no tokenizer.json can say; transformers cannot be "
            "given this model."
        )
    normalizer = parsed.normalizer_spec
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(i, piece.piece, piece.type != _USER_DEFINED)
            for i, piece in enumerate(parsed.pieces)
            # SentencePiece never finds a piece with a space: it marks a text's spaces first
            if piece.type in (_CONTROL, _UNKNOWN, _USER_DEFINED) and " " not in piece.piece
        ],
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(normalizer)},
        "pre_tokenizer": _pre_tokenizer(parsed) if is_unigram(parsed) else None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": _decoders(normalizer)},
        "model": _unigram(parsed) if is_unigram(parsed) else _bpe(parsed),
    }


def is_unigram(parsed: Any) -> bool:
    return parsed.trainer_spec.model_type == _UNIGRAM


def beyond(parsed: Any) -> str:
    """What a parsed model does that no other program's tokenizer can, if anything."""
    types = {piece.type for piece in parsed.pieces}
    known = {_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE}
    flags = {
        "is neither unigram nor BPE": parsed.trainer_spec.model_type not in (_UNIGRAM, _BPE),
        "puts spaces behind words": parsed.trainer_spec.treat_whitespace_as_suffix,
        "changes texts when it decodes": parsed.denormalizer_spec.precompiled_charsmap,
        "does not mark spaces": not parsed.normalizer_spec.escape_whitespaces,
        "has pieces out of use": types - known,
    }
    return next((what for what, has in flags.items() if has), "")


def compared(model: bytes, content: dict[str, Any]) -> str:
    """A sentence on how tokenizer.json and SentencePiece agree; content: of the first."""
    if importlib.util.find_spec("tokenizers") is None:
        return (
            "tokenizer.json was not compared with tokenizer.model, for the package tokenizers is "
            "not installed; a few texts may get other ids, mostly long runs of one character."
        )
    others = differing(model, content)
    if not others:
        return f"tokenizer.json gives the ids of tokenizer.model on {len(HARD_TEXTS)} hard texts."
    return (
        f"tokenizer.json gives other ids than tokenizer.model for {len(others)} of "
        f"{len(HARD_TEXTS)} hard texts, such as {min(others, key=len)!r:.80}; where they must be "
        "those of training, read tokenizer.model with SentencePiece."
    )


def differing(model: bytes, content: dict[str, Any]) -> list[str]:
    """Those of HARD_TEXTS, and of texts with the model's own symbols, that get other ids.

    content: of tokenizer.json. Needs the package `tokenizers`.
    """
    from tokenizers import Tokenizer

    raw = SentencePieceProcessor(model_proto=model)
    fast = Tokenizer.from_str(json.dumps(content))
    parsed = sentencepiece_model_pb2.ModelProto.FromString(model)
    symbols = [piece.piece for piece in parsed.pieces if piece.type == _USER_DEFINED][:20]
    texts = HARD_TEXTS + [
        text for s in symbols for text in (f"a {s} b", f"{s}c", s.replace("▁", " "))
    ]
    return [text for text in texts if fast.encode(text).ids != raw.encode(text)]


def _added(number: int, text: str, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    # a symbol of marked spaces is looked for where spaces have their mark
    flags |= {"normalized": _SPACE in text, "special": special}
    return {"id": number, "content": text, **flags}


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _normalizers(spec: Any) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if "nfkc" in spec.name:
        # `tokenizers` maps what is six bytes or more together one by one: letters with two or
        # more accents apart, half-width katakana with their marks
        steps.append({"type": "NFC"})
        for kana in _KANA_WITH_MARKS:
            whole = unicodedata.normalize("NFKC", kana)
            if len(whole) == 1:
                steps.append(_replace({"String": kana}, whole))
    if spec.precompiled_charsmap:
        charsmap = b64encode(spec.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    steps.append(_replace({"String": " "}, _SPACE))
    if spec.remove_extra_whitespaces:
        steps.append(_replace({"Regex": f"\\A{_SPACE}+|{_SPACE}+\\z"}, ""))
        steps.append(_replace({"Regex": f"{_SPACE}{{2,}}"}, _SPACE))
    if spec.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": _SPACE})
    return steps


def _pre_tokenizer(parsed: Any) -> dict[str, Any] | None:
    """Cuts text that looks like a byte piece behind its `<`, if that is no piece.

    If it is, `_unigram` sees to it. Then a cut would hinder the pieces that begin with it.
    """
    if any(piece.piece == "<" for piece in parsed.pieces):
        return None
    pattern = {"Regex": _LIKE_A_BYTE}
    return {"type": "Split", "pattern": pattern, "behavior": "MergedWithPrevious", "invert": False}


def _decoders(spec: Any) -> list[dict[str, Any]]:
    steps = [_replace({"String": _SPACE}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if spec.add_dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return steps


def _unigram(parsed: Any) -> dict[str, Any]:
    """The pieces and their scores; byte pieces, found by name and not in a text, have the worst."""
    never = 7 * min(piece.score for piece in parsed.pieces) - 10  # than any cut of 6 characters
    return {
        "type": "Unigram",
        "unk_id": parsed.trainer_spec.unk_id,
        "vocab": [
            [piece.piece, never if piece.type == _BYTE else piece.score] for piece in parsed.pieces
        ],
        "byte_fallback": parsed.trainer_spec.byte_fallback,
    }


def _bpe(parsed: Any) -> dict[str, Any]:
    """SentencePiece joins the neighbours whose joint piece scores best; merges rank such pairs."""
    scores = {piece.piece: piece.score for piece in parsed.pieces}
    ids = {piece.piece: i for i, piece in enumerate(parsed.pieces)}
    merges = [
        (-scores[whole], ids[whole], cut, [whole[:cut], whole[cut:]])
        for whole in ids
        for cut in range(1, len(whole))
        if parsed.pieces[ids[whole]].type == 1 and {whole[:cut], whole[cut:]} <= ids.keys()
    ]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": parsed.trainer_spec.unk_piece,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": parsed.trainer_spec.byte_fallback,
        "ignore_merges": False,
        "vocab": ids,
        "merges": [pair for *_, pair in sorted(merges)],
    }
