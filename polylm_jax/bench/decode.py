"""Decoding beside Hugging Face's generate, llama.cpp, and the bandwidth of memory.

To try: polylm bench decode --gin_file=gin_configs/runs/demo.gin --vs=torch
Beside llama.cpp: polylm export --run=RUN --to=F16.gguf --format=gguf --dtype=f16, then
polylm bench decode --gguf=F16.gguf with the settings of that run.
And what int8 costs a run in perplexity: polylm bench decode --run=runs/demo
"""

import contextlib
import importlib.util
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from polylm_jax.bench.peer import PeerProcess, peer_python, torch_device
from polylm_jax.chips import chip_of
from polylm_jax.decode.prefill import State, prefill
from polylm_jax.decode.sampling import Sampling
from polylm_jax.decode.search import decode_some
from polylm_jax.decode.shares import shares, side_by_side
from polylm_jax.decode.weights import for_decoding
from polylm_jax.errors import UserError
from polylm_jax.model.decoder import Compute, Decoder, empty_cache, logits
from polylm_jax.model.parameters import Init, count
from polylm_jax.sizes import Size

BATCHES = (1, 8, 64)
NEW = 64  # tokens, or what the context leaves beside a prompt of a quarter of it
ROUNDS = 4  # of ours and the peer in turn; the first is not counted
SUMMED = 2**28  # bytes, to measure bandwidth where no data sheet tells it


def run(
    size: Size, init: Init, compute: Compute, vs_torch: bool, python: str, gguf: str = ""
) -> dict:
    """Measures one device; every figure is a median of rounds in which the peers took turns.

    The weights are random. python: interpreter of the peers. gguf: a model of this size for
    llama.cpp, "" for none. Returns, by batch, tokens per second of reading prompts and of adding
    tokens, ours, int8's and the peers', with the share of the bandwidth bound that ours reach.
    UserError for a peer that is not there, and for a file of another size.
    """
    decoder = Decoder(size, compute)
    start = jax.jit(Decoder(size, compute, init).init)
    params = start(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    cpu = jax.default_backend() == "cpu"
    weights = {
        "polylm_jax": for_decoding(params, size, compute.dtype, cpu=cpu),
        "polylm_jax int8": for_decoding(params, size, compute.dtype, int8=True, cpu=cpu),
    }
    plain = jax.eval_shape(lambda params: for_decoding(params, size, compute.dtype), params)
    prompt, new = size.context // 4, min(NEW, size.context // 2)
    bandwidth = bandwidth_here()
    batches = {}
    with contextlib.ExitStack() as stack:
        peers = {}
        if vs_torch:
            told = {"dtype": compute.dtype, "device": torch_device(jax.default_backend())}
            peers["transformers"] = PeerProcess(
                peer_python(python), "decode_peer.py", asdict(size) | told
            )
            stack.callback(peers["transformers"].close)
        if gguf:
            llama = llama_peer(gguf, python, max(BATCHES), prompt + new + 1)
            stack.callback(llama.close)
            check_size(size, llama.about, gguf)
            peers[f"llama.cpp {llama.about['ftype']}"] = llama
        for batch in BATCHES:
            rounds: dict[str, list[dict[str, float]]] = {name: [] for name in [*weights, *peers]}
            for _ in range(ROUNDS):
                for name, tree in weights.items():
                    rounds[name].append(ours(decoder, tree, batch, prompt, new))
                for name, peer in peers.items():
                    rounds[name].append(peer.ask(batch, prompt, new))
            speeds = {}
            for name, taken in rounds.items():
                seconds = {key: statistics.median(t[key] for t in taken[1:]) for key in taken[0]}
                speeds[name] = {
                    "prefill": batch * prompt / seconds["prefill"],
                    "decode": batch * new / seconds["decode"],
                }
            least = bytes_read(plain, size, compute, batch, prompt + new // 2)
            bound = batch * bandwidth / least
            batches[str(batch)] = {
                "speeds": speeds,
                "bound": bound,
                "share of bound": speeds["polylm_jax"]["decode"] / bound,
            }
    return {
        "device": jax.devices()[0].device_kind,
        "dtype": compute.dtype,
        "bandwidth": bandwidth,
        "prompt": prompt,
        "new": new,
        "batches": batches,
    }


def llama_peer(
    gguf: str, python: str, rows: int, tokens: int, calls: Sequence[tuple[int, int]] = ()
) -> PeerProcess:
    """llama.cpp with a file, ready for so many texts of so many tokens at once.

    calls: of `bench serve`, tokens of each one's prompt and answer.
    """
    if jax.default_backend() != "cpu":
        raise UserError("--gguf compares on a CPU, where llama.cpp runs; leave it out here.")
    if not python and not importlib.util.find_spec("xllamacpp"):
        raise UserError(
            "--gguf needs xllamacpp; pip install xllamacpp, or name an interpreter that has it "
            "with --peer_python=PATH."
        )
    told = {"file": gguf, "rows": rows, "tokens": tokens, "calls": calls, "device": "cpu"}
    return PeerProcess(python or sys.executable, "llama_peer.py", told)


def check_size(size: Size, meta: dict[str, Any], gguf: str) -> None:
    """UserError where a GGUF file, told as llama.cpp's server does, is of another size.

    Rows of the embedding that are no tokenizer's ids are not in the file.
    """
    absent = (size.vocabulary - meta["n_vocab"]) * size.d_model
    expected = {
        "n_params": count(size) - absent,
        "n_embd": size.d_model,
        "n_ctx_train": size.context,
    }
    for name, number in expected.items():
        if meta[name] != number:
            raise UserError(
                f"--gguf={gguf} is of another size than these settings: its {name} is "
                f"{meta[name]:,}, not {number:,}; give the gin file of the run that it is from."
            )


def ours(decoder: Decoder, params: Any, batch: int, prompt: int, new: int) -> dict[str, float]:
    """Seconds to read random prompts, and then to add so many tokens to each."""
    tokens = np.random.default_rng(0).integers(3, decoder.size.vocabulary, (batch, prompt))
    greedy = Sampling(new_tokens=new)

    def reading(part: np.ndarray) -> State:
        stops = [set[int]()] * len(part)
        return jax.block_until_ready(prefill(decoder, greedy, params, part.tolist(), stops=stops))

    def adding(state: State) -> None:
        jax.block_until_ready(decode_some(decoder, greedy, params, state, new))

    started = time.perf_counter()
    states = side_by_side(reading, np.array_split(tokens, shares(params, batch)))
    read = time.perf_counter()
    side_by_side(adding, states)
    return {"prefill": read - started, "decode": time.perf_counter() - read}


def bytes_read(params: Any, size: Size, compute: Compute, batch: int, length: int) -> int:
    """Bytes that one step must read: all weights but the positions, and the caches."""
    dtype = compute.cache_dtype or compute.dtype
    cache = jax.eval_shape(lambda: empty_cache(size, batch, length, dtype))
    read = {name: tree for name, tree in params.items() if name != "positions"}
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((read, cache)))


def bandwidth_here() -> float:
    """Bytes per second of the device's memory: the data sheet's, or those that a sum reads."""
    if chip := chip_of(jax.devices()[0].device_kind):
        return chip.bandwidth
    x = jnp.zeros(SUMMED // 4)
    read = jax.jit(jnp.sum)
    jax.block_until_ready(read(x))
    taken = []
    for _ in range(5):
        started = time.perf_counter()
        jax.block_until_ready(read(x))
        taken.append(time.perf_counter() - started)
    return SUMMED / min(taken)


def cost_of_int8(decoder: Decoder, params: Any, tokens: np.ndarray, rows: int) -> dict:
    """Perplexity of tokens with the weights of training and with int8, and the change, a share.

    params: the tree of training. Other arguments: see `perplexity`.
    """
    plain, small = (
        perplexity(
            decoder, for_decoding(params, decoder.size, decoder.compute.dtype, int8), tokens, rows
        )
        for int8 in (False, True)
    )
    return {
        "tokens": tokens[:, 1:].size,
        "float": plain,
        "int8": small,
        "change": small / plain - 1,
    }


def perplexity(decoder: Decoder, params: Any, tokens: np.ndarray, rows: int = 1) -> float:
    """Perplexity of token ids [n, length + 1], read as decoding reads a prompt's first chunk.

    rows: read at a time, a multiple of the ways in which the mesh splits a batch; n is one of it.
    """
    length = tokens.shape[1] - 1

    def nats(tokens: jax.Array) -> jax.Array:
        cache = empty_cache(decoder.size, rows, length, decoder.compute.dtype)
        outputs: Any = decoder.apply({"params": params}, tokens[:, :-1], cache)
        scores = logits(outputs[0], params["embedding"])
        of_next = jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1)[..., 0]
        return (jax.nn.logsumexp(scores, axis=-1) - of_next).mean()

    parts = jnp.asarray(tokens).reshape(-1, rows, length + 1)
    return math.exp(float(jax.jit(lambda parts: jax.lax.map(nats, parts))(parts).mean()))


def show(result: dict, console: Console) -> None:
    """Prints the figures as a table, then as one line of JSON."""
    table = Table(
        *("batch", "who", "prefill tokens/s", "decode tokens/s", "of the bound"),
        title=f"{result['device']}, {result['dtype']}, {result['bandwidth'] / 1e9:.1f} GB/s",
    )
    for batch, figures in result["batches"].items():
        for name, speed in figures["speeds"].items():
            share = f"{figures['share of bound']:.0%}" if name == "polylm_jax" else ""
            table.add_row(batch, name, f"{speed['prefill']:,.0f}", f"{speed['decode']:,.0f}", share)
    console.print(table)
    print(json.dumps(result))
