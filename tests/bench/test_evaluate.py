import json
import sys

import numpy as np

from polylm_jax.__main__ import main
from polylm_jax.bench import evaluate
from tests.conftest import TINY, gin_flags

PEER = """#!{python}
import json, sys
forms = list(json.load(open(json.loads(sys.argv[2])["requests"])).values())
print(json.dumps({{"torch": "none"}}), flush=True)
while True:
    requests = len(forms[int(input())])
    print(json.dumps({{"wall": requests / 100, "processor": requests / 50}}), flush=True)
"""


def test_the_bench_tells_every_figure(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "ROUNDS", 2)
    made_up = evaluate.made_up
    monkeypatch.setattr(evaluate, "made_up", lambda *of: made_up(*of)[:3])
    python = tmp_path / "python"
    python.write_text(PEER.format(python=sys.executable))
    python.chmod(0o755)
    model = {name: value for name, value in TINY.items() if name.startswith(("model", "compute"))}
    flags = gin_flags(model | {"model.context": 512})
    assert main(["bench", "evaluate", "--vs=torch", f"--peer_python={python}", *flags]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    for clock, peers in ("wall", 100), ("processor", 50):
        ratios = []
        for speeds in result["requests per second"][clock].values():
            np.testing.assert_allclose(speeds["lm-eval, transformers"], peers)
            ratios.append(speeds["polylm_jax"] / peers)
        mean = result["geometric mean of ratios"][clock]
        np.testing.assert_allclose(mean, np.prod(ratios) ** (1 / 3))
    assert set(result["padding"]) == set(evaluate.BATCH)
