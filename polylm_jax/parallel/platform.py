"""What a platform's compiler and allocator are told, and where compiled programs stay: one call.

The flags overlap collectives with computation. GPU: NVIDIA's list for language models in
JAX-Toolbox (cuBLAS for products, combined collectives under the latency-hiding scheduler).
TPU: the asynchronous collective fusion that MaxText's run files switch on.
"""

import ctypes
import importlib.util
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

import jax

COMBINE = 128 << 20  # bytes of small collectives that go as one

# platform -> (environment variable that its compiler reads, flags)
FLAGS: dict[str, tuple[str, dict[str, str]]] = {
    "gpu": (
        "XLA_FLAGS",
        {
            "xla_gpu_enable_latency_hiding_scheduler": "true",
            "xla_gpu_enable_triton_gemm": "false",
            "xla_gpu_all_gather_combine_threshold_bytes": str(COMBINE),
            "xla_gpu_reduce_scatter_combine_threshold_bytes": str(COMBINE),
            "xla_gpu_all_reduce_combine_threshold_bytes": str(COMBINE),
        },
    ),
    "tpu": (
        "LIBTPU_INIT_ARGS",
        {
            "xla_tpu_enable_async_collective_fusion": "true",
            "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
            "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
            "xla_tpu_overlap_compute_collective_tc": "true",
            "xla_enable_async_all_gather": "true",
        },
    ),
}
# Packages of which one is there where JAX can use the platform, and what its devices are called.
PLUGINS = {"gpu": ("jax_cuda13_plugin", "jax_cuda12_plugin"), "tpu": ("libtpu",)}
DEVICES = {"gpu": ("nvidia*", "dxg"), "tpu": ("accel*", "vfio/*")}
# Settings of glibc's malloc, (parameter of mallopt, value): one arena that never gives memory back.
# Else each step on a CPU has its temporaries from the kernel anew, page by page: 11% of a step.
MALLOC = {"arena_max": (-8, 1), "mmap_max": (-4, 0), "trim_threshold": (-1, -1)}


def describe() -> str:
    """The table as comment lines of a gin file."""
    flags = [
        f"# {variable} for {platform}: {_text(flags)}"
        for platform, (variable, flags) in FLAGS.items()
    ]
    return "\n".join([*flags, f"# as GLIBC_TUNABLES for cpu: {malloc_tunables()}"])


def prepare(
    compile_cache: str,
    environment: MutableMapping[str, str] = os.environ,
    devices: Path = Path("/dev"),
) -> None:
    """Sets flags, allocator and compile cache; to be called before JAX starts its backend.

    Flags are set for the platforms whose plugin is installed; one that the environment already
    gives, with any value, stays as it is. compile_cache: folder where compiled programs of
    accelerators stay between processes, "" for none. A CPU keeps none: its programs are tied
    to the machine's instruction set and compile in seconds. devices: folder of the system's.
    """
    found = [
        platform
        for platform, plugins in PLUGINS.items()
        if environment.get("JAX_PLATFORMS", "") != "cpu"
        and any(map(importlib.util.find_spec, plugins))
    ]
    for platform in found:
        variable, flags = FLAGS[platform]
        given = environment.get(variable, "")
        named = {word.lstrip("-").partition("=")[0] for word in given.split()}
        added = _text({name: value for name, value in flags.items() if name not in named})
        environment[variable] = f"{given} {added}".strip()
    # the compiler for TPUs is installed on machines that only plan for them, too
    if not any(any(devices.glob(name)) for platform in found for name in DEVICES[platform]):
        keep_memory()
    elif compile_cache:
        keep_compiled(Path(compile_cache).expanduser())


def keep_compiled(folder: Path) -> None:
    """Keeps every program that takes a second to compile in the folder."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def keep_memory() -> None:
    """Lets this process keep the memory that it frees, where its allocator is glibc's."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        for parameter, value in MALLOC.values():
            mallopt(parameter, value)


def malloc_tunables() -> str:
    """What keep_memory sets, as the value of GLIBC_TUNABLES for another process."""
    return ":".join(f"glibc.malloc.{name}={value % 2**64}" for name, (_, value) in MALLOC.items())


def _text(flags: dict[str, str]) -> str:
    return " ".join(f"--{name}={value}" for name, value in flags.items())
