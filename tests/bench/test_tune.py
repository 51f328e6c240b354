"""The bench of tuning: what its peers are told, and that its figures agree with what they say."""

import json
import sys

import numpy as np
import pytest

from polylm_jax.__main__ import main
from polylm_jax.data.rows import FIRST, LEARNED
from tests.bench.test_train import script
from tests.conftest import gin_flags
from tests.data.sentences import SENTENCES

# What tune_peer.py says, from a peer without torch that keeps what it was asked and given.
PEER = """#!{python}
import json, pathlib, shutil, sys
told = json.loads(sys.argv[2])
assert sys.argv[1].endswith("tune_peer.py")
shutil.copy(told["data"], "{folder}/" + told["way"] + ".npz")
print(json.dumps({{"who": told["way"]}}), flush=True)
for line in sys.stdin:
    count = int(line)
    pace = dict(padded=4.0, packed=2.0)[told["way"]]
    print(json.dumps({{"seconds": [pace] * count, "tokens": [100] * count}}), flush=True)
"""


@pytest.fixture(scope="module")
def rows(tiny, tmp_path_factory):
    """Settings under which rows of examples are there."""
    folder = tmp_path_factory.mktemp("bench")
    said = [
        {"prompt": f"{n}?", "completion": sentence[:6]}
        for n, sentence in enumerate(SENTENCES["en"])
    ]
    (folder / "en.jsonl").write_text("\n".join(map(json.dumps, said * 4)))
    settings = tiny | {
        "tune.data": (str(folder / "en.jsonl"),),
        "examples.drop_duplicates": False,
        "rows.path": folder / "rows",
        "train.batch": 8,
    }
    assert main(["tune", "--rows_only", *gin_flags(settings)]) == 0
    return settings


@pytest.mark.rare
def test_both_peers_get_our_rows_and_ratios_are_of_real_tokens(rows, tmp_path):
    peer = script(tmp_path / "python", PEER.format(python=sys.executable, folder=tmp_path))
    file = tmp_path / "figures.json"
    flags = ["--steps=5", "--vs=torch", f"--peer_python={peer}", f"--json={file}"]
    assert main(["bench", "tune", *flags, *gin_flags(rows)]) == 0
    result = json.loads(file.read_text())
    ours, padded, packed = result["programs"]
    assert [padded["who"], packed["who"]] == ["padded", "packed"]
    assert (padded["tokens_per_second"], packed["tokens_per_second"]) == (25, 50)
    assert ours["ratio"] == 1
    assert padded["ratio"] == pytest.approx(2 * packed["ratio"])
    assert packed["ratio"] == pytest.approx(ours["tokens_per_second"] / 50)
    given = [dict(np.load(tmp_path / f"{way}.npz")) for way in ("padded", "packed")]
    for name in ("tokens", "marks"):
        np.testing.assert_array_equal(given[0][name], given[1][name])
    tokens, marks = given[0]["tokens"], given[0]["marks"]
    assert tokens.shape == marks.shape == (len(tokens), 17)
    assert len(tokens) % 8 == 0
    assert result["fill"] == pytest.approx((tokens != 0).mean())
    assert result["learned"] == pytest.approx((marks & LEARNED > 0).sum() / (tokens != 0).sum())
    assert (marks[:, 0] & FIRST).all()


def test_rows_of_plain_text_are_refused(tiny, capsys):
    assert main(["bench", "tune", "--steps=1", *gin_flags(tiny)]) == 1
    assert "has no rows of examples of 16 tokens" in capsys.readouterr().err
