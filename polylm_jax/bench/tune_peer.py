"""The peers of `polylm bench tune`: Hugging Face's GPT2LMHeadModel, tuned by torch in two ways.

A script for an interpreter that has torch and transformers and need not have this package:
`python tune_peer.py '{"way": "padded", …}'`. It says what it is on one line of JSON, then for
every number that it reads from stdin it makes that many steps and prints their seconds and how
many tokens that are no padding each one had.

padded: what most loops do: examples in random order, each batch padded to its longest, eager, for
    every batch has another shape.
packed: whole examples side by side in rows of one length, told apart by their positions, which
    transformers does only without a cache (that it does is checked before it is timed); through
    torch.compile where there is a C++ compiler.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

# behind all others, so that no script here is taken for another package
sys.path.append(os.path.dirname(os.path.abspath(__file__)))
from torch_peer import model_of, peak_bytes

WARM_UP = 3  # steps, of which the first compiles
LEARNED, FIRST, IGNORED = 1, 2, -100

Batch = dict[str, torch.Tensor]


def examples_of(tokens: np.ndarray, marks: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, labels) of each example in packed rows; padding is no example."""
    found = []
    for ids, bits in zip(tokens, marks, strict=True):
        for part in np.split(np.arange(len(ids)), np.flatnonzero(bits & FIRST)[1:]):
            if ids[part].any():
                found.append((ids[part], np.where(bits[part] & LEARNED, ids[part], IGNORED)))
    return found


def padded(given: dict[str, Any], tokens: np.ndarray, marks: np.ndarray) -> Iterator[Batch]:
    """Endless batches of as many examples as have about the tokens of the packed rows."""
    examples = examples_of(tokens, marks)
    mean = np.mean([len(ids) for ids, _ in examples])
    each = max(1, round(given["batch"] * given["length"] / mean))
    order = np.random.default_rng(0).permutation(len(examples)).tolist()
    while True:
        for first in range(0, len(order) - each + 1, each):
            chosen = [examples[i] for i in order[first : first + each]]
            longest = max(len(ids) for ids, _ in chosen)
            shape = (each, longest)
            ids, labels = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
            there = np.zeros(shape, np.int64)
            for row, (some, wanted) in enumerate(chosen):
                ids[row, : len(some)], labels[row, : len(some)] = some, wanted
                there[row, : len(some)] = 1
            batch = {"input_ids": ids, "labels": labels, "attention_mask": there}
            yield {name: torch.from_numpy(x) for name, x in batch.items()}


def packed(given: dict[str, Any], tokens: np.ndarray, marks: np.ndarray) -> Iterator[Batch]:
    """Endless batches of packed rows, with positions that begin anew at each example."""
    places = np.arange(tokens.shape[1])
    firsts = np.maximum.accumulate(np.where(marks & FIRST, places, 0), axis=1)
    labels = np.where(marks & LEARNED, tokens, IGNORED)
    while True:
        for first in range(0, len(tokens) - given["batch"] + 1, given["batch"]):
            part = slice(first, first + given["batch"])
            batch = {
                # rows have one id more, which is a target only
                "input_ids": tokens[part, :-1],
                "position_ids": (places - firsts)[part, :-1],
                "shift_labels": labels[part, 1:],
            }
            yield {name: torch.from_numpy(x.astype(np.int64)) for name, x in batch.items()}


def loss_of(model: Any, batch: Batch) -> torch.Tensor:
    """Mean over the learned tokens, as transformers counts it."""
    if "labels" in batch:
        return model(**batch).loss
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    logits = model(**inputs, use_cache=False).logits
    wanted = batch["shift_labels"]
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=IGNORED
    )


def refuse_mixed(model: Any, batch: Batch, examples: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Ends the program where a packed batch has another loss than its examples have alone."""
    total, learned = 0.0, 0
    with torch.no_grad():
        for ids, labels in examples:
            wanted = torch.from_numpy(labels[1:].astype(np.int64)).to(model.device)
            inputs = torch.from_numpy(ids[None, :-1].astype(np.int64)).to(model.device)
            scores = model(input_ids=inputs, use_cache=False).logits[0]
            total += float(torch.nn.functional.cross_entropy(scores, wanted, reduction="sum"))
            learned += int((wanted != IGNORED).sum())
        loss = float(loss_of(model, {name: x.to(model.device) for name, x in batch.items()}))
    if abs(loss - total / learned) > 1e-4 * loss:
        sys.exit(f"its packed examples have a loss of {loss:.6f}, alone {total / learned:.6f}")


def real_tokens(batch: Batch) -> int:
    """Tokens that are no padding; an id 0 is one."""
    return int((batch["input_ids"] != 0).sum())


def main() -> None:
    """Warms up, says what runs, then takes orders until stdin ends."""
    given = json.loads(sys.argv[1])
    cuda = given["device"] == "cuda"
    torch.set_float32_matmul_precision("high")
    with np.load(given["data"]) as file:
        tokens, marks = file["tokens"], file["marks"]
    ways = {"padded": padded, "packed": packed}
    batches = ways[given["way"]](given, tokens, marks)
    model: Any = model_of(given)
    if given["way"] == "packed":
        first = slice(given["batch"])
        batch = next(packed(given, tokens, marks))
        refuse_mixed(model, batch, examples_of(tokens[first], marks[first]))
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        parameters,
        lr=1e-5,
        betas=(given["beta1"], given["beta2"]),
        eps=given["eps"],
        weight_decay=given["weight_decay"],
        fused=True,
    )
    compiler = cuda or shutil.which(os.environ.get("CXX", "g++")) is not None
    compiled = given["way"] == "packed" and compiler
    if compiled:
        model = torch.compile(model, dynamic=False)

    def rest() -> None:
        if cuda:
            torch.cuda.synchronize()

    def step() -> tuple[float, int]:
        batch = {name: x.to(given["device"]) for name, x in next(batches).items()}
        rest()
        started = time.perf_counter()
        with torch.autocast(given["device"], torch.bfloat16, enabled=given["dtype"] == "bfloat16"):
            loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, given["clip"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rest()
        return time.perf_counter() - started, real_tokens(batch)

    for _ in range(WARM_UP):
        step()
    about = {
        "who": f"torch {torch.__version__}, GPT2LMHeadModel, {given['way']}",
        "dtype": given["dtype"],
        "compiled": compiled,
    }
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        made = [step() for _ in range(int(line))]
        told = {
            "seconds": [seconds for seconds, _ in made],
            "tokens": [count for _, count in made],
            "peak_bytes": peak_bytes(cuda),
        }
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
