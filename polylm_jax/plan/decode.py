"""The decoding of a model compiled for one chip: what takes its memory, and whether it fits."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from polylm_jax.decode.prefill import State, prefill
from polylm_jax.decode.sampling import Sampling
from polylm_jax.decode.search import decode_some
from polylm_jax.decode.weights import for_decoding
from polylm_jax.errors import UserError
from polylm_jax.model.decoder import Compute, Decoder
from polylm_jax.model.parameters import count, shapes
from polylm_jax.plan.compile import too_large
from polylm_jax.plan.slices import Slice, devices_of, missing_compiler
from polylm_jax.plan.text import RATES, Part, Rates, kernels, parts, table, whole
from polylm_jax.sizes import Size

GB = 1e9
AT_ONCE = 64  # tokens that the compiled loop may add


@dataclass(frozen=True)
class DecodePlan:
    """Bytes on one chip for one text that fills the context.

    reading, adding: most in use at once while a prompt is read and while tokens are added,
    weights and cache among them. available: what the chip has. seconds: the compiler took.
    token: the kernels that add a token, by part.
    """

    weights: int
    cache: int
    reading: float
    adding: float
    available: float
    seconds: float
    token: tuple[Part, ...]

    @property
    def fits(self) -> bool:
        return max(self.reading, self.adding) <= self.available


def plan_decode(
    size: Size, compute: Compute, int8: bool, where: Slice, memory: float = 0
) -> DecodePlan:
    """Compiles greedy decoding at batch 1 for one chip of the slice.

    memory: bytes of the device to compare with; the chip's own if 0.
    UserError where the slice's compiler is not installed.
    """
    if missing := missing_compiler(where):
        raise UserError(missing)
    started, here = time.monotonic(), SingleDeviceSharding(devices_of(where)[0])

    def there(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), tree)

    decoder, greedy = Decoder(size, compute), Sampling(new_tokens=1)
    longest = [[0] * (size.context - 1)]

    def read(params: Any) -> State:
        return prefill(decoder, greedy, params, longest)

    def add(params: Any, state: State) -> Any:
        return decode_some(decoder, greedy, params, state, AT_ONCE)

    cpu = where.family == "cpu"
    cast = partial(for_decoding, size=size, dtype=compute.dtype, int8=int8, cpu=cpu)
    params = there(jax.eval_shape(cast, shapes(size)))
    state = there(jax.eval_shape(read, params))
    reading, _ = _compile(jax.jit(read, out_shardings=here), params)
    adding, text = _compile(jax.jit(add, donate_argnums=1), params, state)
    return DecodePlan(
        weights=sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)),
        cache=sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.cache)),
        reading=reading,
        adding=adding,
        available=memory or where.room,
        seconds=time.monotonic() - started,
        token=tuple(parts(kernels(text, loop=True), RATES[where.family])),
    )


def _compile(program: Callable[..., Any], *arguments: Any) -> tuple[float, str]:
    """Most bytes in use at once, infinity if the compiler finds no room and says no number; and
    the program's text, "" where there is none."""
    try:
        compiled = program.lower(*arguments).compile()  # type: ignore[attr-defined]
    except jax.errors.JaxRuntimeError as error:
        sizes = too_large(str(error))
        if sizes is None:
            raise
        return sizes[0] or float("inf"), ""
    return compiled.memory_analysis().peak_memory_in_bytes, compiled.as_text()


def lines(plan: DecodePlan, name: str, size: Size, where: Slice) -> list[str]:
    """The plan in words."""
    most = max(plan.reading, plan.adding)
    verdict = "It fits" if plan.fits else "It does not fit"
    figures = {
        "weights": plan.weights,
        "cache": plan.cache,
        "temporaries": most - plan.weights - plan.cache,
        "total": most,
    }
    return [
        f"{name}: {count(size):,} parameters, one text of up to {size.context} tokens on one chip "
        f"of {where.name}, compiled in {plan.seconds:.0f} s.",
        *(f"  {kind:12}{bytes_ / GB:8.2f} GB" for kind, bytes_ in figures.items()),
        f"Reading a prompt takes {plan.reading / GB:.2f} GB, adding tokens {plan.adding / GB:.2f}.",
        f"{verdict}: {most / GB:.2f} of {plan.available / GB:.1f} GB.",
        *(_of_token(plan.token, RATES[where.family]) if plan.token else []),
    ]


def _of_token(token: Sequence[Part], rates: Rates) -> list[str]:
    """The kernels of a token in words; the loop reads all slots of the cache, used or not."""
    every = whole(token)
    return [
        f"A token: {every.kernels:,} kernels that move {every.bytes / GB:.2f} GB, "
        f"{1 / every.seconds:,.0f} tokens/s " + table(token, rates)[0],
        *table(token, rates)[1:],
    ]
