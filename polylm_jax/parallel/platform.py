"""What a platform's compiler is told, and where compiled programs stay: one table, one call.

The flags overlap collectives with computation. GPU: NVIDIA's list for language models in
JAX-Toolbox (cuBLAS for products, combined collectives under the latency-hiding scheduler).
TPU: the asynchronous collective fusion that MaxText's run files switch on.
"""

import importlib.util
import os
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
# Packages of which one is there where JAX can use the platform.
PLUGINS = {"gpu": ("jax_cuda13_plugin", "jax_cuda12_plugin"), "tpu": ("libtpu",)}


def describe() -> str:
    """The table as comment lines of a gin file."""
    return "\n".join(
        f"# {variable} for {platform}: {_text(flags)}"
        for platform, (variable, flags) in FLAGS.items()
    )


def prepare(compile_cache: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets flags and compile cache; to be called before JAX starts its backend.

    Flags are set for the platforms whose plugin is installed; one that the environment already
    gives, with any value, stays as it is. compile_cache: folder where compiled programs of
    accelerators stay between processes, "" for none. A CPU keeps none: its programs are tied
    to the machine's instruction set and compile in seconds.
    """
    wanted = environment.get("JAX_PLATFORMS", "")
    found = [
        platform
        for platform, plugins in PLUGINS.items()
        if wanted != "cpu" and any(map(importlib.util.find_spec, plugins))
    ]
    for platform in found:
        variable, flags = FLAGS[platform]
        given = environment.get(variable, "")
        named = {word.lstrip("-").partition("=")[0] for word in given.split()}
        added = _text({name: value for name, value in flags.items() if name not in named})
        environment[variable] = f"{given} {added}".strip()
    if found and compile_cache:
        keep_compiled(Path(compile_cache).expanduser())


def keep_compiled(folder: Path) -> None:
    """Keeps every program that takes a second to compile in the folder."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def _text(flags: dict[str, str]) -> str:
    return " ".join(f"--{name}={value}" for name, value in flags.items())
