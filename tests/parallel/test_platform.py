"""Flags are added, never replaced; what was compiled is found again, and freed memory is kept."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from polylm_jax.__main__ import main
from polylm_jax.parallel import platform
from polylm_jax.plan import slices

PROGRAM = """
import sys
import jax, jax.numpy as jnp
from polylm_jax.parallel.platform import keep_compiled
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
keep_compiled(sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(float(jax.jit(lambda x: jnp.tanh(x) @ x)(jnp.ones((8, 8))).sum()))
print(sum("cache_hits" in name for name in hits))
"""

FAULTS = """
import resource, sys
import numpy as np
from polylm_jax.parallel import platform
from polylm_jax.plan import slices
if sys.argv[1] == "kept":
    platform.keep("", {"JAX_PLATFORMS": "cpu"})
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.full(2**24, 1.0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HUGE_PAGES = """
import sys
from polylm_jax.parallel import platform
if sys.argv[1] == "kept":
    platform.keep("", {"JAX_PLATFORMS": "cpu"})
content = b"x" * 2**27  # numpy would ask for huge pages by itself
lines = open("/proc/self/smaps_rollup").read().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("AnonHugePages")))
"""


@pytest.fixture
def plugins(monkeypatch):
    """Plays that the GPU's plugin is installed, and libtpu is not."""
    installed = lambda name: SimpleNamespace() if "cuda13" in name else None  # noqa: E731
    monkeypatch.setattr(platform.importlib.util, "find_spec", installed)


@pytest.fixture
def called(monkeypatch):
    """Names of the functions that were called to keep compiled programs or memory."""
    names = []
    for name in ("keep_compiled", "keep_memory"):
        monkeypatch.setattr(platform, name, lambda *_, name=name: names.append(name))
    return names


def test_what_the_user_set_stays(plugins):
    environment = {"XLA_FLAGS": "--xla_gpu_enable_triton_gemm=true --xla_dump_to=here"}
    platform.set_flags(environment)
    words = environment["XLA_FLAGS"].split()
    assert words[:2] == ["--xla_gpu_enable_triton_gemm=true", "--xla_dump_to=here"]
    assert sum("triton_gemm" in word for word in words) == 1
    assert "--xla_gpu_enable_latency_hiding_scheduler=true" in words
    assert set(environment) == {"XLA_FLAGS"}


@pytest.mark.parametrize("name", ["XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"])
def test_the_share_of_memory_that_the_user_set_stays(name, plugins):
    environment = {name: "0.5"}
    platform.take_memory(environment)
    assert environment == {name: "0.5"}


def test_most_of_a_gpus_memory_is_jaxs(plugins):
    """The compiler for a GPU that is not here plans with as much: of four fifths it knows."""
    environment = {}
    platform.take_memory(environment)
    assert environment == {"XLA_CLIENT_MEM_FRACTION": "0.92"}
    [told] = re.findall(r"device_memory_size: (\d+)", slices.H100)
    assert 0.8 * int(told) == pytest.approx(slices.slice_of("h100-8").room)
    assert slices.slice_of("h100-8").room / 2**30 == pytest.approx(0.92 * 79.14, abs=0.01)


def test_a_run_on_the_cpu_keeps_memory_and_nothing_compiled(plugins, called):
    environment = {"JAX_PLATFORMS": "cpu"}
    platform.set_flags(environment)
    platform.take_memory(environment)
    platform.keep("somewhere", environment)
    assert environment == {"JAX_PLATFORMS": "cpu"}
    assert called == ["keep_memory"]


@pytest.mark.parametrize(
    ("device", "kept"), [("nvidia0", "keep_compiled"), ("nvidiactl", "keep_memory")]
)
def test_a_plugin_without_its_device_is_a_cpu(device, kept, plugins, called, tmp_path):
    (tmp_path / device).touch()
    platform.keep("somewhere", {}, tmp_path)
    assert called == [kept]


@pytest.mark.parametrize(
    ("packages", "device", "environment", "chosen"),
    [
        (["libtpu"], "nvidiactl", {}, "cpu"),
        (["libtpu", "jax_cuda13_plugin"], "nvidia0", {}, "cuda,cpu"),
        (["libtpu", "jax_cuda13_plugin"], "nvidiactl", {}, "cpu"),
        (["libtpu"], "accel0", {}, None),
        (["jax_cuda13_plugin"], "nvidia0", {}, None),
        (["libtpu"], "nvidiactl", {"JAX_PLATFORMS": "tpu"}, None),
    ],
)
def test_only_a_tpu_that_is_here_is_tried(
    packages, device, environment, chosen, monkeypatch, tmp_path
):
    (tmp_path / device).touch()
    told = {}
    config = SimpleNamespace(jax_platforms=None, update=told.__setitem__)
    monkeypatch.setattr(platform, "jax", SimpleNamespace(config=config))
    find = lambda name: SimpleNamespace() if name in packages else None  # noqa: E731
    monkeypatch.setattr(platform.importlib.util, "find_spec", find)
    given = dict(environment)
    platform.without_absent_tpu(environment, tmp_path)
    assert told == ({"jax_platforms": chosen} if chosen else {})
    assert environment == ({"JAX_PLATFORMS": chosen} if chosen else given)


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator is glibc's")
def test_memory_that_was_freed_is_used_again():
    faults = lambda how: int(run_python(FAULTS, {}, how)[-1])  # noqa: E731
    assert faults("kept") < 100 < faults("as it is")


@pytest.mark.skipif(
    not HUGE.exists() or "[never]" in HUGE.read_text(), reason="the system gives no huge pages"
)
def test_memory_lies_in_huge_pages():
    here = lambda how: int(run_python(HUGE_PAGES, {}, how)[-1])  # noqa: E731
    assert here("kept") > 100_000
    if "[madvise]" in HUGE.read_text():
        assert here("as it is") < 100_000


def test_the_flags_are_shown_with_the_settings(capsys):
    assert main(["config"]) == 0
    shown = capsys.readouterr().out
    assert "# XLA_FLAGS for gpu: --xla_gpu_enable_latency_hiding_scheduler=true" in shown
    assert "# LIBTPU_INIT_ARGS for tpu: --xla_tpu_enable_async" in shown
    assert "# as GLIBC_TUNABLES for cpu: glibc.malloc.arena_max=1:" in shown


def test_a_second_process_finds_what_the_first_compiled_under_the_gpu_flags(tmp_path):
    _, flags = platform.FLAGS["gpu"]
    text = " ".join(f"--{name}={value}" for name, value in flags.items())

    run = lambda: run_python(PROGRAM, {"XLA_FLAGS": text}, str(tmp_path))  # noqa: E731
    first, second = run(), run()
    assert first[0] == second[0]
    assert int(first[1]) == 0
    assert int(second[1]) > 0


def run_python(program, environment, *words):
    """The words that a program says in a process of its own, on a CPU."""
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        env={"JAX_PLATFORMS": "cpu", "PYTHONPATH": ":".join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
