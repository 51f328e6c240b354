"""Runs of models that say what a test wants, imported from folders made here."""

import json
from io import BytesIO

import numpy as np
import sentencepiece
from safetensors.numpy import save_file

from polylm_jax.__main__ import main

TEXT = [
    "The name of the town is",
    "Bitte geben Sie einen Namen ein",
    "パソコン ガイド ハンカク",
    "请点击下面的链接",
    "if x: return code",
    "Привет, как дела",
] * 20
# the trainer's own settings, as Llama's and the release's: a space in front, NFKC
SPACED = {
    "normalization_rule_name": "nmt_nfkc",
    "add_dummy_prefix": True,
    "remove_extra_whitespaces": True,
}


def tokenizer(**flags):
    """A small SentencePiece model, by default lossless as ours are; the processor of it too."""
    ours = {
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "byte_fallback": True,
        "vocab_size": 400,
        "hard_vocab_limit": False,
        "sentence_iterator": iter(TEXT),
    }
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        model_writer=model,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
        **ours | flags,
    )
    return model.getvalue(), sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def weights(vocabulary, context, width, draw):
    """A GPT-2 of one layer; draw: function (shape) -> array."""
    shapes = {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "attn.c_attn.weight": (width, 3 * width),
        "attn.c_attn.bias": (3 * width,),
        "attn.c_proj.weight": (width, width),
        "attn.c_proj.bias": (width,),
        "mlp.c_fc.weight": (width, width),
        "mlp.c_fc.bias": (width,),
        "mlp.c_proj.weight": (width, width),
        "mlp.c_proj.bias": (width,),
    }
    outer = {
        "wte.weight": (vocabulary, width),
        "wpe.weight": (context, width),
        "ln_f.weight": (width,),
        "ln_f.bias": (width,),
    }
    named = outer | {f"h.0.{name}": shape for name, shape in shapes.items()}
    made = {f"transformer.{name}": draw(shape).astype(np.float32) for name, shape in named.items()}
    for name in made:
        if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")):
            made[name] += 1
    return made


def imported(folder, model, arrays):
    """A run of these arrays and this tokenizer in `folder`."""
    source, run = folder / "source", folder / "run"
    source.mkdir()
    vocabulary, width = arrays["transformer.wte.weight"].shape
    context = len(arrays["transformer.wpe.weight"])
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "vocab_size": vocabulary,
        "n_positions": context,
        "n_layer": 1,
        "n_head": 4,
        "n_embd": width,
        "n_inner": width,
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (source / "config.json").write_text(json.dumps(config))
    (source / "tokenizer.model").write_bytes(model)
    save_file(arrays, source / "model.safetensors", {"format": "pt"})
    assert main(["import", f"--from={source}", f"--run={run}"]) == 0
    return run


def says(folder, model, script, prompt, context=64):
    """A run that after a prompt of so many tokens says these ids, then </s> for ever."""
    size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    arrays = weights(size, context, context, np.zeros)
    arrays["transformer.wpe.weight"][:] = 100 * np.eye(context)
    table = arrays["transformer.wte.weight"]
    for place, token in enumerate(script, prompt - 1):
        table[token, place] += 1
    table[2, prompt - 1 + len(script) :] += 1
    return imported(folder, model, arrays)


def babbles(folder, model, context=64):
    """A run of random parameters."""
    size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    random = np.random.default_rng(0)
    return imported(
        folder, model, weights(size, context, 32, lambda shape: 0.2 * random.standard_normal(shape))
    )
