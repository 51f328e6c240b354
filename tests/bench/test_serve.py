"""The bench of the engine runs at a tiny size and tells what it should."""

from io import StringIO

import pytest
from rich.console import Console

from polylm_jax.bench import serve
from polylm_jax.model.decoder import Compute
from polylm_jax.model.parameters import Init
from polylm_jax.serve.settings import Serving
from polylm_jax.sizes import Size


@pytest.mark.rare
def test_the_engine_is_timed_beside_static_batching(capsys):
    size = Size(vocabulary=64, context=1024, layers=1, heads=2, d_model=16, d_ff=32)
    compute = Compute("float32", prefill_chunk=16)
    found = serve.run(size, Init(), compute, Serving(burst=4, prompt_tokens=16), {2: 4}, rounds=2)
    level = found["at once"]["2"]
    assert level["ratio"] > 0
    assert 0.2 < level["fill"] <= 1
    assert 0 < level["gap"] <= level["worst gap"]
    assert level["first token"] > 0
    said = StringIO()
    serve.show(found, Console(file=said, width=200))
    assert "of the usual" in said.getvalue()
    assert '"ratio"' in capsys.readouterr().out


def test_the_load_is_geometric_and_fits():
    size = Size(vocabulary=64, context=512, layers=1, heads=2, d_model=16, d_ff=32)
    load = serve.made_up(size, 4000)
    assert abs(sum(load.limits) / len(load.limits) - serve.MEAN) < 2
    pairs = zip(load.prompts, load.limits, strict=True)
    assert all(len(prompt) + limit <= size.context for prompt, limit in pairs)
