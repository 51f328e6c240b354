"""What a platform's compiler and allocator are told, and where compiled programs stay.

The flags overlap collectives with computation. GPU: NVIDIA's list for language models in
JAX-Toolbox (cuBLAS for products, combined collectives under the latency-hiding scheduler).
TPU: the asynchronous collective fusion that MaxText's run files switch on.
"""

import ctypes
import importlib.util
import mmap
import os
import pkgutil
import sys
from collections.abc import MutableMapping
from pathlib import Path

import jax

from polylm_jax.files import place

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
            # compute.remat says what is kept. Where that comes near the memory's end, this pass
            # would compute more again, in silence: 1,000 kernels and 27 ms of a step of 760.
            "xla_disable_hlo_passes": "rematerialization",
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
            # Sums go through the SparseCores of a v5p and a v6e while their TensorCores multiply;
            # a v4 and a v5e compile as without these.
            "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true",
            "xla_tpu_enable_sparse_core_collective_offload_all_reduce": "true",
            "xla_tpu_use_tc_device_shape_on_sc": "true",
            "xla_sc_disable_megacore_partitioning": "true",
        },
    ),
}
# Share of a GPU's memory that JAX takes at its start, three quarters by itself; the rest is for
# the libraries. The older name of the variable, with "PYTHON" in it, may not be set beside it.
MEMORY, MEMORY_SHARE = "XLA_CLIENT_MEM_FRACTION", "0.92"
# Packages of which one is there where JAX can use the platform, and what its devices are called.
PLUGINS = {"gpu": ("jax_cuda13_plugin", "jax_cuda12_plugin"), "tpu": ("libtpu",)}
DEVICES = {"gpu": ("nvidia[0-9]*", "dxg"), "tpu": ("accel[0-9]*", "vfio/[0-9]*")}
# Settings of glibc's malloc, (parameter of mallopt, value): one arena that never gives memory back.
# Else each step on a CPU has its temporaries from the kernel anew, page by page: 10% of a step.
MALLOC = {"arena_max": (-8, 1), "mmap_max": (-4, 0), "trim_threshold": (-1, -1)}


def describe() -> str:
    """The table as comment lines of a gin file."""
    flags = [
        f"# {variable} for {platform}: {_text(flags)}"
        for platform, (variable, flags) in FLAGS.items()
    ]
    flags.append(f"# {MEMORY} for gpu: {MEMORY_SHARE}")
    return "\n".join([*flags, f"# as GLIBC_TUNABLES for cpu: {malloc_tunables()}"])


def set_flags(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets the flags that training wants; to be called before JAX starts its backend.

    Not for decoding: its products of few rows want the kernels that these flags switch off.
    They are set for the platforms whose plugin is installed; one that the environment already
    gives, with any value, stays as it is.
    """
    for platform in _installed(environment):
        variable, flags = FLAGS[platform]
        given = environment.get(variable, "")
        named = {word.lstrip("-").partition("=")[0] for word in given.split()}
        added = _text({name: value for name, value in flags.items() if name not in named})
        environment[variable] = f"{given} {added}".strip()


def take_memory(environment: MutableMapping[str, str] = os.environ) -> None:
    """Gives a GPU's memory to JAX; to be called before it starts its backend.

    A share that the environment already gives stays as it is.
    """
    if "gpu" in _installed(environment) and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in environment:
        environment.setdefault(MEMORY, MEMORY_SHARE)


def compiler_options(platform: str) -> dict[str, str | bool]:
    """The flags of a platform as options of one compilation, where its device is not here."""
    values = {"true": True, "false": False}
    return {name: values.get(value, value) for name, value in FLAGS[platform][1].items()}


def without_absent_tpu(
    environment: MutableMapping[str, str] = os.environ, devices: Path = Path("/dev")
) -> None:
    """Keeps JAX from trying a TPU that is not here; to be called before it starts its backend.

    The compiler for TPUs is installed on machines that only plan for them, and complains at
    length of the missing TPU when JAX starts it. Whatever the environment says stays, and so do
    plugins of which we know nothing. devices: folder of the system's.
    """
    # JAX sets it by itself where it sees a TPU on the bus
    if "JAX_PLATFORMS" in environment or jax.config.jax_platforms:  # type: ignore[attr-defined]
        return
    installed = _installed(environment)
    plugins = importlib.util.find_spec("jax_plugins")
    folders = plugins.submodule_search_locations if plugins else None
    others = [
        plugin.name
        for plugin in pkgutil.iter_modules(folders or [])
        if not plugin.name.startswith("xla_cuda")
    ]
    if "tpu" not in installed or _here("tpu", devices) or others:
        return
    names = "cuda,cpu" if "gpu" in installed and _here("gpu", devices) else "cpu"
    environment["JAX_PLATFORMS"] = names  # for processes that we start
    jax.config.update("jax_platforms", names)


def _here(platform: str, devices: Path) -> bool:
    """Whether the machine has a device of this platform."""
    return any(any(devices.glob(name)) for name in DEVICES[platform])


def keep(
    compile_cache: str,
    environment: MutableMapping[str, str] = os.environ,
    devices: Path = Path("/dev"),
) -> None:
    """Keeps what the next step or run can use; to be called before JAX starts its backend.

    compile_cache: folder where an accelerator's compiled programs stay between processes, ""
    for none. A CPU keeps freed memory instead: its programs are tied to the machine's instruction
    set and compile in seconds. devices: folder of the system's.
    """
    # the compiler for TPUs is installed on machines that only plan for them, too
    if not any(_here(platform, devices) for platform in _installed(environment)):
        keep_memory()
    elif compile_cache:
        keep_compiled(place(compile_cache, "compute.compile_cache"))


def _installed(environment: MutableMapping[str, str]) -> list[str]:
    """The platforms that have a plugin, where the environment does not ask for the CPU."""
    if environment.get("JAX_PLATFORMS") == "cpu":
        return []
    return [
        name for name, plugins in PLUGINS.items() if any(map(importlib.util.find_spec, plugins))
    ]


def keep_compiled(folder: str) -> None:
    """Keeps every program that takes a second to compile in the folder."""
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def keep_memory() -> None:
    """Lets this process keep the memory that it frees, in huge pages, where its allocator is
    glibc's.

    Pages are marked before there are any: half of the machine's memory, which costs nothing until
    it is used, is asked for, marked, and given back to glibc, which hands it out by and by.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt"):
        return
    for parameter, value in MALLOC.values():
        libc.mallopt(parameter, value)
    page, size = mmap.PAGESIZE, os.sysconf("SC_PHYS_PAGES") // 2 * mmap.PAGESIZE
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if block := libc.malloc(size):
        libc.madvise(-(-block // page) * page, size - page, mmap.MADV_HUGEPAGE)
        libc.free(block)


def malloc_tunables() -> str:
    """What keep_memory sets, as the value of GLIBC_TUNABLES for another process."""
    return ":".join(f"glibc.malloc.{name}={value % 2**64}" for name, (_, value) in MALLOC.items())


def _text(flags: dict[str, str]) -> str:
    return " ".join(f"--{name}={value}" for name, value in flags.items())
