"""The peer of `polylm bench train`: Hugging Face's GPT2LMHeadModel, trained by torch.

A script for an interpreter that has torch and transformers and need not have this package:
`python torch_peer.py '{"vocabulary": 1024, …}'`. It says what it is on one line of JSON, then
for every number that it reads from stdin it trains that many steps and prints their seconds.

The peer at its best: torch.compile (eager where there is no C++ compiler), SDPA, fused AdamW,
float32 master weights. Products are in the dtype that it is told, bfloat16 by autocast. It takes
the rows of a batch that it is told at a time, and fewer where they do not fit the memory.
"""

import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

WARM_UP = 2  # steps after the one that compiles


def model_of(given: dict[str, Any]) -> GPT2LMHeadModel:
    """A fresh model of the size and on the device that the script is told, ready to train."""
    torch.manual_seed(0)
    size = GPT2Config(
        vocab_size=given["vocabulary"],
        n_positions=given["context"],
        n_embd=given["d_model"],
        n_layer=given["layers"],
        n_head=given["heads"],
        n_inner=given["d_ff"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="sdpa",
    )
    return GPT2LMHeadModel(size).to(given["device"]).train()


class Run:
    """A model, its optimizer and a batch. compiled: through torch.compile, or eager."""

    def __init__(self, given: dict[str, Any], rows: int, compiled: bool) -> None:
        self.device = given["device"]
        self.dtype = given["dtype"]
        self.rows = rows
        model = model_of(given)
        decays = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim < 2]
        groups: list[dict[str, Any]] = [
            {"params": decays, "weight_decay": given["weight_decay"]},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=1e-4, betas=(given["beta1"], given["beta2"]), eps=given["eps"], fused=True
        )
        self.clip = given["clip"]
        self.parameters = [*decays, *others]
        self.model = torch.compile(model, dynamic=False) if compiled else model
        shape = (given["batch"], given["length"])
        self.tokens = torch.randint(3, given["vocabulary"], shape, device=self.device)

    def step(self) -> float:
        """Seconds of one step, from a device at rest to a device at rest."""
        self.rest()
        started = time.perf_counter()
        parts = self.tokens.split(self.rows)
        for part in parts:
            with torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "bfloat16"):
                loss = self.model(input_ids=part, labels=part).loss
            (loss / len(parts)).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.rest()
        return time.perf_counter() - started

    def rest(self) -> None:
        """Waits for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def warm(given: dict[str, Any], compiled: bool) -> tuple[Run, float]:
    """A run that fits the memory, and the seconds of its first step."""
    batch = given["batch"]
    rows = next(n for n in range(min(given["rows"], batch), 0, -1) if batch % n == 0)
    while True:
        run: Run | None = None
        try:
            run = Run(given, rows, compiled)
            first = run.step()
            for _ in range(WARM_UP):
                run.step()
            return run, first
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
        rows = next(n for n in range(rows // 2, 0, -1) if batch % n == 0)
        run = None  # its memory, before the next one asks for some
        torch.compiler.reset()
        torch.cuda.empty_cache()


def main() -> None:
    """Warms up, says what runs, then takes orders until stdin ends."""
    given = json.loads(sys.argv[1])
    cuda = given["device"] == "cuda"
    torch.set_float32_matmul_precision("high")
    # on a GPU torch brings its own compiler
    compiled = cuda or shutil.which(os.environ.get("CXX", "g++")) is not None
    run, first = warm(given, compiled)
    about = {
        "who": f"torch {torch.__version__}, GPT2LMHeadModel",
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "dtype": run.dtype,
        "compiled": compiled,
        "microbatches": given["batch"] // run.rows,
        "compile_seconds": first,
    }
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        seconds = [run.step() for _ in range(int(line))]
        print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes(cuda)}), flush=True)


def peak_bytes(cuda: bool) -> int:
    """Most bytes in use at once.

    On Linux not by ru_maxrss, which begins with what the process had that started this one.
    """
    if cuda:
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
