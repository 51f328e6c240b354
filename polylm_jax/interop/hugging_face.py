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
# Training texts begin after </s>, so it is the beginning of a text as well.
PAD, BOS, EOS = 0, 2, 2
HEAD, EMBEDDING = "lm_head.weight", "transformer.wte.weight"

# All are 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))); the release says gelu_fast.
TANH_GELU = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate")
# What GPT2Config may vary and the decoder does not.
FIXED = {
    "model_type": "gpt2",
    "layer_norm_epsilon": LAYER_NORM_EPSILON,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
# What no GPT-2 config has, but for one whose weights are not what their names say. (A config may
# have reorder_and_upcast_attn: the decoder's scores are float32 always.)
ABSENT = {
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
    "transformers_weights": None,
}
# Our name of each size, GPT-2's, and the one that transformers has for all models.
SIZES = {
    "vocabulary": ("vocab_size",),
    "context": ("n_positions", "max_position_embeddings"),
    "layers": ("n_layer", "num_hidden_layers"),
    "heads": ("n_head", "num_attention_heads"),
    "d_model": ("n_embd", "hidden_size"),
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
    for name, value in (FIXED | ABSENT).items():
        given = config.get(name)
        if given is not None and given != value:
            raise UserError(
                f"{source} has {name} = {given!r:.60}; the decoder knows {value!r} only."
            )
    activation = config.get("activation_function", TANH_GELU[0])
    if activation not in TANH_GELU:
        raise UserError(
            f"{source} has activation_function = {activation!r}; the decoder knows the tanh GELU "
            f"only ({', '.join(TANH_GELU)})."
        )
    sizes = {ours: _one_of(config, names, source) for ours, names in SIZES.items()}
    inner = config.get("n_inner")
    return Size(**sizes, d_ff=4 * sizes["d_model"] if inner is None else int(inner))


def _one_of(config: dict[str, Any], names: tuple[str, ...], source: str) -> int:
    """The number that goes by one of the names; by several, if they agree."""
    values = {int(config[name]) for name in names if name in config}
    if not values:
        raise UserError(f"{source} has no {names[0]!r}; give the config.json of a GPT-2.")
    if len(values) > 1:
        both = " and ".join(f"{name} = {config[name]}" for name in names)
        raise UserError(f"{source} has {both}; leave the right one.")
    return values.pop()


def config_of(size: Size, dtype: str, init_std: float) -> dict[str, Any]:
    """The config.json with which transformers loads the decoder as GPT2LMHeadModel."""
    return FIXED | {
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": TANH_GELU[0],
        "vocab_size": size.vocabulary,
        "n_positions": size.context,
        "n_ctx": size.context,  # its name in GPT-2's own files, and for llama.cpp's converter
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


def full_name(name: str) -> str:
    """A tensor's name in a GPT2LMHeadModel, whether it was saved with or without the prefix."""
    return name if name == HEAD else "transformer." + name.removeprefix("transformer.")


def matched(found: Mapping[str, tuple[int, ...]], size: Size) -> dict[tuple[str, int | None], str]:
    """Which tensor of a file each place of the model takes: (our name, layer) -> its name.

    found: shape of each tensor by name, with or without the `transformer.` prefix. Causal masks
    are passed over. Of the embedding and lm_head, which are one, either may be missing; if both
    are there, only their values can show that they are. UserError names a tensor that is
    missing, has another shape, or is not the model's.
    """
    left = {full_name(name): name for name in found if not _CAUSAL_MASK.fullmatch(name)}
    head = left.pop(HEAD, None)
    if head and EMBEDDING not in left:
        left[EMBEDDING] = head
    taken = {}
    for name, parameter, layer in places(size):
        key = parameter.hugging_face.format(layer=layer)
        if key not in left:
            raise UserError(
                f"the tensor {key} is missing: the files are not whole, or config.json is of "
                f"another model than {size.layers} layers of {size.d_model}; fetch both again."
            )
        theirs = left.pop(key)
        if found[theirs] != parameter.hugging_face_shape:
            raise UserError(
                f"the tensor {theirs} has shape {found[theirs]}, config.json's is "
                f"{parameter.hugging_face_shape}; take both from one model."
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
