"""A run as one GGUF file, which llama.cpp and the programs around it load.

llama.cpp knows the decoder as its architecture "gpt2", and SentencePiece by several tokenizers of
its own, each with a part of it: see `tokenizer_kind`.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sentencepiece import sentencepiece_model_pb2

from polylm_jax.console import LiveLine
from polylm_jax.errors import UserError
from polylm_jax.files import take_room
from polylm_jax.interop.convert import unfit_for
from polylm_jax.interop.fast_tokenizer import beyond, is_unigram
from polylm_jax.interop.hugging_face import EOS, PAD
from polylm_jax.model.decoder import LAYER_NORM_EPSILON
from polylm_jax.model.parameters import Parameter, count, layer_parameters, outer_parameters
from polylm_jax.sizes import Size
from polylm_jax.train.door import Run, read_parts

# What a file can be written in, and the largest number that each holds: a block of 32 weights of
# q8_0 has one scale, a float16, and integers up to 127. Biases, norms and positions are f32 always.
TYPES = {"f32": 3.4e38, "f16": 65504.0, "q8_0": 127 * 65504.0}
BLOCK = 32
# Most bytes, as float32, of a tensor that are converted at a time.
PART = 1 << 26
_NAMES = {
    "embedding": "token_embd.weight",
    "positions": "position_embd.weight",
    "final_norm_scale": "output_norm.weight",
    "final_norm_bias": "output_norm.bias",
    "attention_norm_scale": "blk.{layer}.attn_norm.weight",
    "attention_norm_bias": "blk.{layer}.attn_norm.bias",
    "qkv": "blk.{layer}.attn_qkv.weight",
    "qkv_bias": "blk.{layer}.attn_qkv.bias",
    "attention_out": "blk.{layer}.attn_output.weight",
    "attention_out_bias": "blk.{layer}.attn_output.bias",
    "mlp_norm_scale": "blk.{layer}.ffn_norm.weight",
    "mlp_norm_bias": "blk.{layer}.ffn_norm.bias",
    "mlp_in": "blk.{layer}.ffn_up.weight",
    "mlp_in_bias": "blk.{layer}.ffn_up.bias",
    "mlp_out": "blk.{layer}.ffn_down.weight",
    "mlp_out_bias": "blk.{layer}.ffn_down.bias",
}
_NORMAL, _BYTE = 1, 6


def write_gguf(run: Run, path: Path, scratch: Path, dtype: str) -> None:
    """Writes a run's parameters and tokenizer into a file; dtype: a name in TYPES.

    scratch: a folder for one parameter of all layers at a time, as float32. Rows of the embedding
    beyond the tokenizer's ids are left out, so that llama.cpp cannot choose them. UserError if the
    parameters are not as they were saved, not finite or too large for the type, or if llama.cpp
    has no tokenizer like the run's; the file is good for nothing then.
    """
    size = run.size
    places = _create(run, path, dtype)
    table = outer_parameters(size) | layer_parameters(size)
    line, done, unfit = LiveLine(10), 0, ""
    for name, parts in itertools.groupby(read_parts(run), lambda part: part.name):
        kind, held = _kind(name, table[name], dtype), scratch / name
        shape = (size.layers if name in layer_parameters(size) else 1, *table[name].shape)
        with open(held, "wb") as file:
            take_room(file, 4 * math.prod(shape))
        for part in parts:
            whole = np.memmap(held, np.float32, "r+", shape=shape)
            whole[part.layer or 0][part.place] = part.values
            if not np.abs(part.values).max() <= TYPES[kind]:
                unfit = unfit or unfit_for(name, part.values, kind, "f32")
            done += part.values.size
            line.show(f"exported {done / count(size):.0%}", last=done == count(size))
        for layer in range(0 if unfit else shape[0]):
            matrix = partial(_matrix, held, shape, layer, table[name])
            rows = run.tokenizer.size if name == "embedding" else len(matrix())
            _fill(path, places[_NAMES[name].format(layer=layer)], matrix, rows, kind)
        held.unlink()
    if unfit:
        raise UserError(unfit)


def _turned(parameter: Parameter) -> bool:
    """Whether a tensor is [outputs, inputs] in the file: GPT-2's are the other way about."""
    return parameter.decays and "{layer}" in parameter.hugging_face


def _kind(name: str, parameter: Parameter, dtype: str) -> str:
    """What a tensor is written in; a row that is not of whole blocks of q8_0 is f16."""
    if not parameter.decays or name == "positions":
        return "f32"
    row = parameter.hugging_face_shape[0 if _turned(parameter) else 1]
    return "f16" if dtype == "q8_0" and row % BLOCK else dtype


def _matrix(held: Path, shape: tuple[int, ...], layer: int, parameter: Parameter) -> np.ndarray:
    """A layer's tensor as the file has it, a vector as one row.

    It is mapped anew by each call, so that the memory of what was read is given back.
    """
    whole = np.memmap(held, np.float32, "r", shape=shape)[layer]
    matrix = whole.reshape(parameter.hugging_face_shape)
    return matrix.T if _turned(parameter) else np.atleast_2d(matrix)


def _fill(path: Path, offset: int, matrix: Callable[[], np.ndarray], rows: int, kind: str) -> None:
    """Writes the first rows of a matrix at its place, some at a time."""
    from gguf import GGMLQuantizationType, quantize

    step = max(1, PART // (4 * matrix().shape[1]))
    with open(path, "r+b") as file:
        file.seek(offset)
        for start in range(0, rows, step):
            some = np.ascontiguousarray(matrix()[start : min(start + step, rows)])
            file.write(quantize(some, GGMLQuantizationType[kind.upper()]).tobytes())


def _tensors(size: Size, ids: int, dtype: str) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """(name in the file, shape, kind) of every tensor. ids: rows of the embedding that count."""
    for name, parameter in (outer_parameters(size) | layer_parameters(size)).items():
        shape = parameter.hugging_face_shape
        shape = shape[::-1] if _turned(parameter) else shape
        shape = (ids, *shape[1:]) if name == "embedding" else shape
        for layer in range(size.layers if name in layer_parameters(size) else 1):
            yield _NAMES[name].format(layer=layer), shape, _kind(name, parameter, dtype)


def _create(run: Run, path: Path, dtype: str) -> dict[str, int]:
    """Makes the file, its tensors still to be written; the byte at which each begins."""
    try:
        import gguf
    except ImportError:
        raise UserError(
            "a GGUF file is written by the package gguf: pip install gguf (or polylm_jax[gguf])."
        ) from None
    size, types = run.size, gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(size.context)
    writer.add_embedding_length(size.d_model)
    writer.add_feed_forward_length(size.d_ff)
    writer.add_block_count(size.layers)
    writer.add_head_count(size.heads)
    writer.add_layer_norm_eps(LAYER_NORM_EPSILON)
    named = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}[dtype]
    writer.add_file_type(gguf.LlamaFileType[named])
    _add_tokenizer(writer, run.tokenizer.model)
    lengths = {}
    for name, shape, kind in _tensors(size, run.tokenizer.size, dtype):
        block, width = gguf.GGML_QUANT_SIZES[types[kind.upper()]]
        lengths[name] = int(np.prod(shape)) // block * width
        writer.add_tensor_info(
            name, shape, np.dtype(np.float32), lengths[name], types[kind.upper()]
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    align = lambda at: -(-at // writer.data_alignment) * writer.data_alignment  # noqa: E731
    places, end = {}, align(path.stat().st_size)
    for name, length in lengths.items():
        places[name], end = end, align(end + length)
    with open(path, "r+b") as file:
        take_room(file, end)
    return places


def tokenizer_kind(model: bytes) -> str:
    """The tokenizer of llama.cpp's that reads texts as a SentencePiece model does.

    "llama" is SentencePiece's BPE, but changes nothing in a text first. Of unigram, "plamo2" knows
    bytes and changes nothing, "t5" changes what the model's normaliser does, puts a space in
    front, and has no bytes for a letter that is no piece. UserError if none does.
    """
    parsed = sentencepiece_model_pb2.ModelProto.FromString(model)
    if what := beyond(parsed):
        raise UserError(f"the run's tokenizer {what}, which no tokenizer of llama.cpp does.")
    spec = parsed.normalizer_spec
    changes = bool(spec.precompiled_charsmap or spec.remove_extra_whitespaces)
    if is_unigram(parsed):
        return "t5" if changes or spec.add_dummy_prefix else "plamo2"
    if changes:
        raise UserError(
            "the run's tokenizer is BPE and changes letters or spaces of a text, which llama.cpp "
            "does for unigram only; it would get other ids from the same text."
        )
    return "llama"


def likeness(model: bytes) -> str:
    """A sentence on how llama.cpp will cut texts, compared with a SentencePiece model."""
    return {
        "llama": "llama.cpp cuts texts as the run's tokenizer does.",
        "plamo2": "llama.cpp cuts texts as the run's tokenizer does, but for some long runs of one "
        "character, which the same pieces fill in another order.",
        "t5": "llama.cpp cuts texts as the run's tokenizer does, but reads letters that are no "
        "pieces of it as <unk>, where the run has their bytes.",
    }[tokenizer_kind(model)]


def _pieces(parsed: Any, kind: str) -> Iterator[tuple[str, float, int]]:
    """(text, score, type) of each piece; the numbers of the types are SentencePiece's."""
    worst = min(piece.score for piece in parsed.pieces) - 10  # its price of an unknown letter
    taken = {piece.piece for piece in parsed.pieces} | {"\0"}
    for piece in parsed.pieces:
        text = piece.piece
        letter = chr(int(text[3:5], 16)) if piece.type == _BYTE else ""
        if kind == "plamo2":
            yield text.replace("▁", " "), piece.score, piece.type
        elif kind == "t5" and letter and letter.isascii() and letter not in taken:
            yield letter, worst, _NORMAL  # so that a newline, say, is known
        else:
            yield text, piece.score, piece.type


def _add_tokenizer(writer: Any, model: bytes) -> None:
    """Writes the pieces and the flags."""
    kind = tokenizer_kind(model)
    parsed = sentencepiece_model_pb2.ModelProto.FromString(model)
    spec = parsed.normalizer_spec
    texts, scores, types = zip(*_pieces(parsed, kind), strict=True)
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_add_space_prefix(spec.add_dummy_prefix)
    writer.add_remove_extra_whitespaces(spec.remove_extra_whitespaces)
    if spec.precompiled_charsmap:
        writer.add_precompiled_charsmap(spec.precompiled_charsmap)
    writer.add_bos_token_id(EOS)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(parsed.trainer_spec.unk_id)
    writer.add_pad_token_id(PAD)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
