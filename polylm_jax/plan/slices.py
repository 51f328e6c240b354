"""Slices by the names clouds give them, and their devices as a compiler sees them."""

import difflib
import importlib.util
import os
import re
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
from jax.experimental import topologies

from polylm_jax.chips import Chip, chip_of
from polylm_jax.errors import UserError
from polylm_jax.parallel.platform import MEMORY_SHARE

GPUS_PER_HOST = 8

# family: device kind, chips a name counts as one (v4-8 is 8 TensorCores, 4 chips), dimensions of
# the network, most chips (cloud.google.com/tpu/docs: one slice)
FAMILIES = {
    "v4": ("TPU v4", 2, 3, 2048),
    "v5e": ("TPU v5 lite", 1, 2, 256),
    "v5p": ("TPU v5", 2, 3, 2048),
    "v6e": ("TPU v6 lite", 1, 2, 256),
    "h100": ("NVIDIA H100 80GB HBM3", 1, 0, 4096),
}

# Bytes of an H100's memory that JAX takes, of those that CUDA tells.
TAKEN = float(MEMORY_SHARE) * 84_978_434_048
# What the GPU compiler wants to know of an H100 SXM (NVIDIA's data sheet, CUDA's device query). On
# a machine it asks JAX's allocator for its memory. Here, where there is none to ask, it takes four
# fifths of what it is told; with less than the run will have, it sends nothing beside work.
H100 = f"""
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: {round(TAKEN / 0.8)}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 }}
device_description_str: "NVIDIA H100 80GB HBM3"
"""

# libtpu looks for a TPU when it loads; these say that there is none to look for.
LIBTPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v4-8",
}


@dataclass(frozen=True)
class Slice:
    """A number of chips wired together: v5p-128, h100-64; or several such, 2xv5p-512, which the
    data centre's network joins.

    chips: of all slices. topology: shape of one TPU slice's network, "4x4x4"; slices x hosts x
    GPUs of GPUs.
    """

    name: str
    family: str
    chips: int
    topology: str
    slices: int = 1

    @property
    def chip(self) -> Chip:
        found = chip_of(FAMILIES[self.family][0])
        assert found is not None, self.family
        return found

    @property
    def gpu(self) -> bool:
        return self.family == "h100"

    @property
    def room(self) -> float:
        """Bytes of a chip's memory that programs can have, so far as that is known."""
        return TAKEN if self.gpu else self.chip.memory

    @property
    def wired(self) -> int:
        """Chips that `Chip.links` reach: of a GPU's host, of a TPU's slice."""
        return GPUS_PER_HOST if self.gpu else self.chips // self.slices


def slice_of(name: str) -> Slice:
    """The slice of a name such as "v5p-128" or "4xv5e-256"; a UserError with the nearest name."""
    if several := re.fullmatch(r"([1-9]\d{0,2})x(.+)", name):
        one = slice_of(several[2])
        if one.gpu:
            raise UserError(f"GPUs come in no slices: give all of them, as in h100-64, not {name}.")
        count = int(several[1])
        return replace(one, name=name, chips=count * one.chips, slices=count)
    known = {one.name: one for one in _known()}
    if name not in known:
        family, _, size = name.partition("-")
        near = difflib.get_close_matches(name, known, 1, 0)
        if family in FAMILIES and size.isdigit():
            same = [one for one in known if one.startswith(f"{family}-")]
            near = [min(same, key=lambda one: abs(int(one.partition("-")[2]) - int(size)))]
        raise UserError(
            f'there is no slice "{name}"; the nearest is {near[0]}. '
            f"Families: {', '.join(FAMILIES)}; v4 and v5p count two TensorCores a chip."
        )
    return known[name]


def _known() -> list[Slice]:
    slices = []
    for family, (_, cores, dimensions, most) in FAMILIES.items():
        chips = 4 if dimensions else 1
        while chips <= most:
            name = f"{family}-{chips * cores}"
            slices.append(Slice(name, family, chips, _topology(chips, dimensions)))
            chips *= 2
    return slices


def _topology(chips: int, dimensions: int) -> str:
    """The shape a cloud gives a slice: as near a cube or square as powers of two allow."""
    if not dimensions:
        return f"1x{max(1, chips // GPUS_PER_HOST)}x{min(chips, GPUS_PER_HOST)}"
    shape = [1] * dimensions
    while prod(shape) < chips:
        shape[shape.index(min(shape))] *= 2
    # a network's last dimensions are its longest, but a single host is flat: 2x2x1
    return "x".join(map(str, sorted(shape, reverse=1 in shape)))


def missing_compiler(where: Slice) -> str:
    """One sentence on the packages to install if the slice's compiler is not here, else ""."""
    modules, packages = ["libtpu"], '"libtpu==0.0.42.1"'
    if where.gpu:  # cuDNN, since attention is one of its kernels
        modules = ["jax_plugins.xla_cuda13", "nvidia.cudnn"]
        packages = " ".join(
            f'"jax-cuda13-{part}=={jax.__version__}"' for part in ("plugin", "pjrt")
        )
        packages += " nvidia-cudnn-cu13"
    if all(map(_is_here, modules)):
        return ""
    return (
        f"The compiler for {where.family} is not installed: this is arithmetic only. "
        f"pip install {packages} brings it; no device is needed."
    )


def _is_here(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def devices_of(where: Slice) -> list[jax.Device]:
    """The slice's devices, described: programs compile for them and cannot run."""
    if where.gpu:
        described = topologies.get_topology_desc(
            "", platform="cuda", target_config=H100, topology=where.topology
        )
    else:
        for name, value in LIBTPU.items():
            os.environ.setdefault(name, value)
        # one device a chip, as a program on a real v4 sees it
        options: dict[str, Any] = {"chip_config_name": "megacore"} if where.family == "v4" else {}
        if where.slices > 1:
            options |= {"num_slices": where.slices}
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{where.family}:{where.topology}", **options
        )
    return list(described.devices)
