"""The decoder as a Hugging Face GPT-2: names, shapes and config.json, by the one table."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from polylm_jax.errors import UserError
from polylm_jax.model.decoder import LAYER_NORM_EPSILON
from polylm_jax.model.parameters import Parameter, layer_parameters, outer_parameters
from polylm_jax.sizes import Size

# The vocabulary has no padding id. <unk> never occurs in text (bytes stand for what is unknown),
# so padding with it hides no </s> from those who mask the padding out of a loss.
PAD, BOS, EOS = 0, 1, 2
HEAD = "lm_head.weight"

# All three are 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))); the release says gelu_fast.
TANH_GELU = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")
# What GPT2Config may vary and the decoder does not.
FIXED = {
    "model_type": "gpt2",
    "layer_norm_epsilon": LAYER_NORM_EPSILON,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
_CAUSAL_MASK = re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)")


def places(size: Size) -> Iterator[tuple[str, Parameter, int | None]]:
    """(our name, parameter, layer) of every tensor of a GPT2LMHeadModel, lm_head left out."""
    for name, parameter in outer_parameters(size).items():
        yield name, parameter, None
    for layer in range(size.layers):
        for name, parameter in layer_parameters(size).items():
            yield name, parameter, layer


def size_of(config: dict[str, Any], source: str) -> Size:
    """The size that a GPT-2 config.json describes; UserError where it is another kind of model.

    source: the file's name, for the error. Token ids are not read: the release's are wrong.
    """
    for name, value in FIXED.items():
        if config.get(name, value) != value:
            raise UserError(
                f"{source} has {name} = {config[name]!r}; the decoder knows {value!r} only."
            )
    activation = config.get("activation_function", TANH_GELU[0])
    if activation not in TANH_GELU:
        raise UserError(
            f"{source} has activation_function = {activation!r}; the decoder knows the tanh GELU "
            f"only ({', '.join(TANH_GELU)})."
        )
    try:
        d_model = int(config["n_embd"])
        return Size(
            vocabulary=int(config["vocab_size"]),
            context=int(config["n_positions"]),
            layers=int(config["n_layer"]),
            heads=int(config["n_head"]),
            d_model=d_model,
            d_ff=int(config.get("n_inner") or 4 * d_model),
        )
    except KeyError as missing:
        raise UserError(f"{source} has no {missing}; give the config.json of a GPT-2.") from None


def config_of(size: Size, dtype: str, init_std: float) -> dict[str, Any]:
    """The config.json with which transformers loads the decoder as GPT2LMHeadModel."""
    return FIXED | {
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": TANH_GELU[0],
        "vocab_size": size.vocabulary,
        "n_positions": size.context,
        "n_layer": size.layers,
        "n_head": size.heads,
        "n_embd": size.d_model,
        "n_inner": size.d_ff,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
        "initializer_range": init_std,
        "tie_word_embeddings": True,
        "use_cache": True,
        "torch_dtype": dtype,
        **token_ids(),
    }


def token_ids() -> dict[str, int]:
    """The special ids as config.json and generation_config.json write them."""
    return {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}


def matched(found: Mapping[str, tuple[int, ...]], size: Size) -> dict[tuple[str, int | None], str]:
    """Which tensor of a file each place of the model takes: (our name, layer) -> its name.

    found: shape of each tensor by name, with or without the `transformer.` prefix. Causal masks
    are passed over, and so is lm_head, which only its values can show to be the embedding.
    UserError names a tensor that is missing, has another shape, or is not the model's.
    """
    left = {
        name if name == HEAD else "transformer." + name.removeprefix("transformer."): name
        for name in found
        if not _CAUSAL_MASK.fullmatch(name)
    }
    left.pop(HEAD, None)
    taken = {}
    for name, parameter, layer in places(size):
        key = parameter.hugging_face.format(layer=layer)
        if key not in left:
            raise UserError(f"the tensor {key} is missing; give a GPT-2 of {size.layers} layers.")
        theirs = left.pop(key)
        if found[theirs] != parameter.hugging_face_shape:
            raise UserError(
                f"the tensor {theirs} has shape {found[theirs]}, the model's is "
                f"{parameter.hugging_face_shape}; give the model's own sizes."
            )
        taken[name, layer] = theirs
    if left:
        raise UserError(f"the tensor {next(iter(left.values()))} has no place in the model.")
    return taken


def params_from(weights: dict[str, np.ndarray], size: Size) -> dict[str, Any]:
    """Parameters from GPT2LMHeadModel tensors (names as in model.safetensors), float32.

    Errors as in `matched`.
    """
    taken = matched({name: value.shape for name, value in weights.items()}, size)
    outer: dict[str, Any] = {}
    stacks: dict[str, list[np.ndarray]] = {}
    for name, parameter, layer in places(size):
        value = np.asarray(weights[taken[name, layer]], np.float32).reshape(parameter.shape)
        if layer is None:
            outer[name] = value
        else:
            stacks.setdefault(name, []).append(value)
    return outer | {"layers": {name: np.stack(values) for name, values in stacks.items()}}


def weights_from(params: dict[str, Any], size: Size) -> dict[str, np.ndarray]:
    """GPT2LMHeadModel tensors, float32, without the tied lm_head; inverse of params_from."""
    weights = {}
    for name, parameter, layer in places(size):
        value = params[name] if layer is None else params["layers"][name][layer]
        key = parameter.hugging_face.format(layer=layer)
        weights[key] = np.asarray(value, np.float32).reshape(parameter.hugging_face_shape)
    return weights
