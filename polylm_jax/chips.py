"""What one device can do, from the makers' data sheets: FLOP/s, memory, links."""

import contextlib
import math
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Chip:
    """One device as JAX sees it (a megacore TPU v4 is one).

    flops: dense bfloat16 FLOP/s. memory: bytes of HBM. bandwidth: HBM bytes/s.
    links: bytes/s into one chip over its fast network (ICI, NVLink), all links together.
    network: bytes/s into one chip over the data centre's network, where `links` end: at a GPU's
        host, at a TPU's slice; 0 where that is not known.
    """

    flops: float
    memory: float
    bandwidth: float
    links: float
    network: float = 0


# TPU: cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x. GPU: NVIDIA's data sheets of the SXM
# models, without sparsity; between hosts, one 400 Gb/s card a GPU (DGX H100). Between slices: 50
# Gb/s a chip on v5p, 6.4 and 25.6 Tb/s for the 256 chips of a v5e and a v6e pod; of v4 no number is
# published and v5p's is taken. A key is a part of
# jax.Device.device_kind in lower case; the first that matches counts.
CHIPS = {
    "tpu v4": Chip(275e12, 32 * 2**30, 1.2e12, 300e9, 6.25e9),
    "tpu v5 lite": Chip(197e12, 16 * 2**30, 0.82e12, 200e9, 3.125e9),
    "tpu v5e": Chip(197e12, 16 * 2**30, 0.82e12, 200e9, 3.125e9),
    "tpu v5": Chip(459e12, 95 * 2**30, 2.765e12, 600e9, 6.25e9),
    "tpu v6": Chip(918e12, 32 * 2**30, 1.64e12, 448e9, 12.5e9),
    "tpu7x": Chip(2307e12, 192 * 2**30, 7.38e12, 600e9),
    "h200": Chip(989e12, 141e9, 4.8e12, 450e9),
    "h100": Chip(989e12, 80e9, 3.35e12, 450e9, 50e9),
    "a100": Chip(312e12, 80e9, 2.04e12, 300e9),
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a device kind, or None where nothing is known (a CPU)."""
    kind = device_kind.lower()
    return next((chip for name, chip in CHIPS.items() if name in kind), None)


def cores(quota: str = "/sys/fs/cgroup/cpu.max") -> int:
    """Of the CPU, those that this process may use.

    quota: where Linux tells a container how much of each period it has, as `docker --cpus` sets it.
    """
    # other systems than Linux do not tell, but have no containers that take some away either
    told = hasattr(os, "sched_getaffinity")
    count = len(os.sched_getaffinity(0)) if told else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max", which is no limit
        share, period = map(int, Path(quota).read_text("ascii").split())
        count = min(count, math.ceil(share / period))
    return count
