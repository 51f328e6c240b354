"""The bench of the engine runs at a tiny size and tells what it should."""

import json
import sys
from io import StringIO

import pytest
from rich.console import Console

from polylm_jax.bench import serve
from polylm_jax.model.decoder import Compute
from polylm_jax.model.parameters import Init, count
from polylm_jax.serve.settings import Serving
from polylm_jax.sizes import Size


@pytest.mark.rare
def test_the_engine_is_timed_beside_static_batching_and_llama(capsys, tmp_path):
    size = Size(vocabulary=64, context=1024, layers=1, heads=2, d_model=16, d_ff=32)
    compute = Compute("float32", prefill_chunk=16)
    about = {"ftype": "F16", "n_vocab": 64, "n_params": count(size), "n_embd": 16}
    about |= {"n_ctx_train": 1024}
    # says how many calls it was told of
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport json, sys\ntold = json.loads(sys.argv[2])\n"
        f"assert told['rows'] == 2 and told['file'] == 'f16.gguf'\nprint({json.dumps(about)!r})\n"
        "sys.stdout.flush()\nfor line in sys.stdin:\n    assert line == '2\\n'\n"
        "    print(json.dumps({'seconds': float(len(told['calls']))}), flush=True)\n"
    )
    python.chmod(0o755)
    serving = Serving(burst=4, prompt_tokens=16)
    found = serve.run(size, Init(), compute, serving, {2: 4}, 2, "f16.gguf", str(python))
    level = found["at once"]["2"]
    assert all(speed > 0 for speed in level["speeds"].values())
    assert level["speeds"]["llama.cpp F16"] == sum(serve.made_up(size, 4).limits) / 4
    assert 0.2 < level["fill"] <= 1
    assert 0 < level["gap"] <= level["worst gap"]
    assert level["first token"] > 0
    said = StringIO()
    serve.show(found, Console(file=said, width=200))
    assert "of the usual" in said.getvalue()
    assert "llama.cpp F16" in said.getvalue()
    assert '"fill"' in capsys.readouterr().out


def test_the_load_is_geometric_and_fits():
    size = Size(vocabulary=64, context=512, layers=1, heads=2, d_model=16, d_ff=32)
    load = serve.made_up(size, 4000)
    assert abs(sum(load.limits) / len(load.limits) - serve.MEAN) < 2
    pairs = zip(load.prompts, load.limits, strict=True)
    assert all(len(prompt) + limit <= size.context for prompt, limit in pairs)
