"""A SentencePiece model as the tokenizer.json of Hugging Face's `tokenizers`, same ids.

Everything is taken from the model's own flags: its normaliser, the space it puts before the
text, the spaces it removes, unigram or BPE, byte pieces.
"""

from base64 import b64encode
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from polylm_jax.errors import UserError

_UNIGRAM, _BPE = 1, 2
_CONTROL, _USER_DEFINED, _UNKNOWN = 3, 4, 2
_SPACE = "▁"


def tokenizer_json(model: bytes) -> dict[str, Any]:
    """The content of tokenizer.json. model: the content of tokenizer.model.

    `<s>` and `</s>` are known in text too, which SentencePiece does not do; chat templates need
    it. UserError for a model that is neither unigram nor BPE.
    """
    parsed = sentencepiece_model_pb2.ModelProto.FromString(model)
    kind, normalizer = parsed.trainer_spec.model_type, parsed.normalizer_spec
    if kind not in (_UNIGRAM, _BPE):
        raise UserError("the tokenizer is neither unigram nor BPE; export one of those.")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(i, piece.piece, piece.type != _USER_DEFINED)
            for i, piece in enumerate(parsed.pieces)
            if piece.type in (_CONTROL, _UNKNOWN, _USER_DEFINED)
        ],
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(normalizer)},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": _decoders(normalizer)},
        "model": _unigram(parsed) if kind == _UNIGRAM else _bpe(parsed),
    }


def _added(number: int, text: str, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": text, **flags, "special": special}


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _normalizers(spec: Any) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if "nfkc" in spec.name:
        # `tokenizers` maps letters with two or more accents apart only one by one
        steps.append({"type": "NFC"})
    if spec.precompiled_charsmap:
        charsmap = b64encode(spec.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if spec.remove_extra_whitespaces:
        steps.append(_replace({"Regex": "^ +| +$"}, ""))
        steps.append(_replace({"Regex": " {2,}"}, " "))
    if spec.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": _SPACE})
    if spec.escape_whitespaces:
        steps.append(_replace({"String": " "}, _SPACE))
    return steps


def _decoders(spec: Any) -> list[dict[str, Any]]:
    steps = [_replace({"String": _SPACE}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if spec.add_dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return steps


def _unigram(parsed: Any) -> dict[str, Any]:
    return {
        "type": "Unigram",
        "unk_id": parsed.trainer_spec.unk_id,
        "vocab": [[piece.piece, piece.score] for piece in parsed.pieces],
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
