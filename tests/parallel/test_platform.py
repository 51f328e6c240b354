"""Compiler flags are added, never replaced, and a second process finds what the first compiled."""

import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from polylm_jax.__main__ import main
from polylm_jax.parallel import platform

PROGRAM = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from polylm_jax.parallel.platform import keep_compiled
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
keep_compiled(Path(sys.argv[1]))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(float(jax.jit(lambda x: jnp.tanh(x) @ x)(jnp.ones((8, 8))).sum()))
print(sum("cache_hits" in name for name in hits))
"""


@pytest.fixture
def plugins(monkeypatch):
    """Plays that the GPU's plugin is installed, and libtpu is not."""
    installed = lambda name: SimpleNamespace() if "cuda13" in name else None  # noqa: E731
    monkeypatch.setattr(platform.importlib.util, "find_spec", installed)


def test_what_the_user_set_stays(plugins):
    environment = {"XLA_FLAGS": "--xla_gpu_enable_triton_gemm=true --xla_dump_to=here"}
    platform.prepare("", environment)
    words = environment["XLA_FLAGS"].split()
    assert words[:2] == ["--xla_gpu_enable_triton_gemm=true", "--xla_dump_to=here"]
    assert sum("triton_gemm" in word for word in words) == 1
    assert "--xla_gpu_enable_latency_hiding_scheduler=true" in words
    assert set(environment) == {"XLA_FLAGS"}


def test_a_run_on_the_cpu_is_left_alone(plugins):
    environment = {"JAX_PLATFORMS": "cpu"}
    before = jax.config.jax_compilation_cache_dir
    platform.prepare("somewhere", environment)
    assert environment == {"JAX_PLATFORMS": "cpu"}
    assert jax.config.jax_compilation_cache_dir == before


def test_the_flags_are_shown_with_the_settings(capsys):
    assert main(["config"]) == 0
    shown = capsys.readouterr().out
    assert "# XLA_FLAGS for gpu: --xla_gpu_enable_latency_hiding_scheduler=true" in shown
    assert "# LIBTPU_INIT_ARGS for tpu: --xla_tpu_enable_async" in shown


def test_a_second_process_finds_what_the_first_compiled_under_the_gpu_flags(tmp_path):
    _, flags = platform.FLAGS["gpu"]
    text = " ".join(f"--{name}={value}" for name, value in flags.items())

    def run():
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path)],
            env={"XLA_FLAGS": text, "JAX_PLATFORMS": "cpu", "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    first, second = run(), run()
    assert first[0] == second[0]
    assert int(first[1]) == 0
    assert int(second[1]) > 0
