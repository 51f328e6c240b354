"""The decoder's parameters as Hugging Face GPT-2 tensors, and back, by the one table."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from polylm_jax.errors import UserError
from polylm_jax.model.parameters import Parameter, layer_parameters, outer_parameters
from polylm_jax.sizes import Size


def _places(size: Size) -> Iterator[tuple[str, Parameter, int | None]]:
    """(our name, parameter, layer) of every tensor in a GPT2LMHeadModel file."""
    for name, parameter in outer_parameters(size).items():
        yield name, parameter, None
    for layer in range(size.layers):
        for name, parameter in layer_parameters(size).items():
            yield name, parameter, layer


def params_from(weights: dict[str, np.ndarray], size: Size) -> dict[str, Any]:
    """Parameters from GPT2LMHeadModel tensors (names as in model.safetensors), float32.

    UserError names a tensor that is missing, has another shape, or is not the model's.
    """
    left = dict(weights)
    outer: dict[str, Any] = {}
    stacks: dict[str, list[np.ndarray]] = {}
    for name, parameter, layer in _places(size):
        key = parameter.hugging_face.format(layer=layer)
        if key not in left:
            raise UserError(f"the tensor {key} is missing; give a GPT-2 of {size.layers} layers.")
        tensor = left.pop(key)
        if tensor.shape != parameter.hugging_face_shape:
            raise UserError(
                f"the tensor {key} has shape {tensor.shape}, the model's is "
                f"{parameter.hugging_face_shape}; give the model's own sizes."
            )
        value = np.asarray(tensor, np.float32).reshape(parameter.shape)
        if layer is None:
            outer[name] = value
        else:
            stacks.setdefault(name, []).append(value)
    if left:
        raise UserError(f"the tensor {next(iter(left))} has no place in the model.")
    return outer | {"layers": {name: np.stack(values) for name, values in stacks.items()}}


def weights_from(params: dict[str, Any], size: Size) -> dict[str, np.ndarray]:
    """GPT2LMHeadModel tensors, float32, without the tied lm_head; inverse of params_from."""
    weights = {}
    for name, parameter, layer in _places(size):
        value = params[name] if layer is None else params["layers"][name][layer]
        key = parameter.hugging_face.format(layer=layer)
        weights[key] = np.asarray(value, np.float32).reshape(parameter.hugging_face_shape)
    return weights
