"""The bench of ROUGE-L: the same figures as its peer, and faster by as much as is promised."""

import json

from polylm_jax.__main__ import main
from polylm_jax.bench import rouge


def test_it_is_500_times_as_fast_and_the_same(tmp_path, capsys, monkeypatch):
    for name, value in (("FEW", 60), ("MANY", 500), ("POOLS", (100, 1000)), ("ROUNDS", 2)):
        monkeypatch.setattr(rouge, name, value)
    file = tmp_path / "figures.json"
    assert main(["bench", "rouge", f"--json={file}"]) == 0
    figures = json.loads(file.read_text())
    speeds = figures["pairs per second"]
    assert speeds["polylm_jax"] > 500 * speeds["rouge_score"]
    assert figures["largest difference"] < 1e-12
    assert main(["bench", "rouge", "--peer_python=/nowhere"]) == 1
    assert "--peer_python=/nowhere does not start" in capsys.readouterr().err
