"""A GGUF file, read back by the package gguf, holds the run's parameters and its pieces.

What llama.cpp makes of it is asked in test_judges.py.
"""

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from polylm_jax.__main__ import main
from polylm_jax.data import tokenizer
from polylm_jax.errors import UserError
from polylm_jax.interop.gguf_file import likeness, tokenizer_kind
from polylm_jax.interop.hugging_face import EMBEDDING
from tests.interop.test_fast_tokenizer import KINDS, trained

BY_NAME = {
    "token_embd.weight": "wte.weight",
    "position_embd.weight": "wpe.weight",
    "output_norm.bias": "ln_f.bias",
    "blk.1.attn_norm.weight": "h.1.ln_1.weight",
    "blk.0.attn_qkv.weight": "h.0.attn.c_attn.weight",
    "blk.1.attn_qkv.bias": "h.1.attn.c_attn.bias",
    "blk.1.attn_output.weight": "h.1.attn.c_proj.weight",
    "blk.0.ffn_up.weight": "h.0.mlp.c_fc.weight",
    "blk.1.ffn_down.weight": "h.1.mlp.c_proj.weight",
}


def exported(run, file, dtype):
    flags = [f"--run={run}", f"--to={file}", "--format=gguf", f"--dtype={dtype}"]
    return main(["export", *flags])


def wide(weights):
    """The same with an embedding and projections whose rows are whole blocks of q8_0."""
    chance = np.random.default_rng(0)
    shapes = {name: [64 if n == 24 else 96 if n == 40 else 192 if n == 72 else n for n in v.shape]
              for name, v in weights.items()}  # fmt: skip
    return {k: chance.standard_normal(shape, np.float32) for k, shape in shapes.items()}


@pytest.fixture
def run(weights, hugging_face, tmp_path):
    run = tmp_path / "run"
    folder = hugging_face(wide(weights), n_embd=64, n_inner=96)
    assert main(["import", f"--from={folder}", f"--run={run}"]) == 0
    return run


@pytest.mark.parametrize("dtype", ["f32", "f16", "q8_0"])
def test_every_tensor_is_the_runs_rounded_once(dtype, run, weights, tmp_path, capsys):
    file = tmp_path / "model.gguf"
    assert exported(run, file, dtype) == 0
    assert "llama-server" in capsys.readouterr().out
    reader, expected = gguf.GGUFReader(file), wide(weights)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == len(weights)
    for name, theirs in BY_NAME.items():
        values = expected[f"transformer.{theirs}"]
        values = values.T if name.startswith("blk") and values.ndim == 2 else values
        tensor = tensors[name]
        found = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(values.shape)
        exact = values.ndim == 1 or name.startswith("position") or dtype == "f32"
        assert tensor.tensor_type.name == ("F32" if exact else dtype.upper())
        if exact:
            np.testing.assert_array_equal(found, values)
        elif dtype == "f16":
            np.testing.assert_array_equal(found, values.astype(np.float16))
        else:
            blocks = np.abs(values.reshape(-1, 32)).max(1, keepdims=True)
            # half a step, and what rounding the step to float16 does to 127 of them
            assert (np.abs((found - values).reshape(-1, 32)) <= blocks / 127 * 0.57).all()
    assert [path.name for path in tmp_path.iterdir() if "model.gguf" in path.name] == [file.name]


def test_pieces_and_settings_are_the_runs(run, tiny, tmp_path):
    file = tmp_path / "model.gguf"
    assert exported(run, file, "f16") == 0
    fields = gguf.GGUFReader(file).fields
    said = {name: field.contents() for name, field in fields.items()}
    vocabulary = tokenizer.load(str(tiny["tokenizer.path"]))
    assert said["general.architecture"] == "gpt2"
    assert said["gpt2.context_length"] == 48
    assert said["gpt2.feed_forward_length"] == 96
    pieces = [vocabulary.processor.id_to_piece(i) for i in range(vocabulary.size)]
    assert [piece.replace(" ", "▁") for piece in said["tokenizer.ggml.tokens"]] == pieces
    assert said["tokenizer.ggml.model"] == "plamo2"
    ids = [said[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding")]
    assert ids == [2, 2, 0]
    assert said["tokenizer.ggml.add_bos_token"] is False


def test_padding_of_the_vocabulary_is_left_out_and_what_no_block_fits_is_f16(
    weights, hugging_face, tmp_path
):
    table = weights[EMBEDDING]
    padded = weights | {EMBEDDING: np.concatenate([table, table[:8]])}
    folder, run = hugging_face(padded, vocab_size=len(table) + 8), tmp_path / "run"
    assert main(["import", f"--from={folder}", f"--run={run}"]) == 0
    assert exported(run, tmp_path / "a.gguf", "q8_0") == 0
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    found = tensors["token_embd.weight"]
    assert found.tensor_type.name == "F16"  # rows of 24
    np.testing.assert_array_equal(found.data, table.astype(np.float16))


@pytest.mark.parametrize(
    ("value", "dtype", "sentence"),
    [
        (np.nan, "f32", "the run's parameters are not finite"),
        (1e5, "f16", "embedding has values that f16 cannot hold; give --dtype=f32"),
        (1e8, "q8_0", "embedding has values that q8_0 cannot hold; give --dtype=f32"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(value, dtype, sentence, run, tmp_path, capsys):
    file = tmp_path / "hugging_face/model.safetensors"
    content = load_file(file)
    content[EMBEDDING][7, 7] = value
    save_file(content, file)
    assert main(["import", f"--from={file.parent}", f"--run={tmp_path}/other"]) == 0
    assert exported(tmp_path / "other", tmp_path / "a.gguf", dtype) == 1
    assert sentence in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if "a.gguf" in path.name]


def test_each_kind_of_sentencepiece_has_its_tokenizer_or_none():
    found = {
        (kind, algorithm): tokenizer_kind(trained(algorithm, **flags))
        for kind, flags in KINDS.items()
        for algorithm in ("unigram", "bpe")
        if (kind, algorithm) != ("the trainer's defaults", "bpe")
    }
    assert found == {
        ("ours", "unigram"): "plamo2",
        ("ours", "bpe"): "llama",
        ("Llama's", "unigram"): "t5",
        ("Llama's", "bpe"): "llama",
        ("the trainer's defaults", "unigram"): "t5",
    }
    with pytest.raises(UserError, match="puts spaces behind words"):
        tokenizer_kind(trained("unigram", treat_whitespace_as_suffix=True))
    with pytest.raises(UserError, match="is BPE and changes letters"):
        likeness(trained("bpe", **KINDS["the trainer's defaults"]))


def test_a_dtype_of_the_other_format_is_named(run, tmp_path, capsys):
    assert exported(run, tmp_path / "a.gguf", "bfloat16") == 1
    assert "give one of f16, q8_0, f32" in capsys.readouterr().err
