import json
import math
import sys

import jax.numpy as jnp
import pytest

from polylm_jax.__main__ import main
from polylm_jax.bench import decode, gpu
from polylm_jax.decode.weights import for_decoding
from polylm_jax.errors import UserError
from polylm_jax.model.decoder import Compute
from polylm_jax.model.parameters import count
from polylm_jax.sizes import Size
from tests import golden
from tests.conftest import TINY, gin_flags

PEER = """#!{python}
import json
meta = {{"ftype": "F16", "n_vocab": 1000, "n_embd": 16, "n_ctx_train": 32}}
meta["n_params"] = {parameters}
print(json.dumps(meta), flush=True)
while True:
    batch, prompt, new = map(int, input().split())
    print(json.dumps({{"prefill": batch * prompt / 100, "decode": batch * new / 50}}), flush=True)
"""


def test_the_bench_tells_every_figure(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(decode, "ROUNDS", 2)
    monkeypatch.setattr(decode, "BATCHES", (3,))
    monkeypatch.setattr(decode, "SUMMED", 2**20)
    python = tmp_path / "python"
    parameters = count(Size(1000, 32, 2, 2, 16, 32))
    python.write_text(PEER.format(python=sys.executable, parameters=parameters))
    python.chmod(0o755)
    gguf = tmp_path / "f16.gguf"
    gguf.touch()
    model = {name: value for name, value in TINY.items() if name.startswith(("model", "compute"))}
    file = tmp_path / "figures.json"
    peer = [f"--gguf={gguf}", f"--peer_python={python}"]
    flags = [f"--json={file}", "--vs=torch", *peer, *gin_flags(model)]
    assert main(["bench", "decode", *flags]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads(file.read_text()) == result
    assert set(result["batches"]) == {"3"}
    for figures in result["batches"].values():
        speeds = figures["speeds"]
        assert set(speeds) == {*("polylm_jax", "polylm_jax int8", "transformers", "llama.cpp F16")}
        assert speeds["llama.cpp F16"] == speeds["transformers"]
        assert speeds["transformers"] == pytest.approx({"prefill": 100, "decode": 50})
        assert all(math.isfinite(s) and s > 0 for speed in speeds.values() for s in speed.values())
        assert figures["share of bound"] > 0
    told = gpu.FIGURES["decode"](result)
    assert told["batch 3, transformers, tokens/s added"] == pytest.approx(50)
    assert {name.replace("batch 1,", "batch 3,") for name in gpu.DECODING} <= told.keys()


def test_a_file_of_another_size_or_none_is_one_sentence(tmp_path, capsys, monkeypatch):
    size = Size(1024, 32, 2, 2, 16, 32)
    meta = {"n_vocab": 1000, "n_params": count(size) - 24 * 16, "n_embd": 16, "n_ctx_train": 32}
    decode.check_size(size, meta, "x.gguf")
    for name in ("n_params", "n_embd", "n_ctx_train"):
        with pytest.raises(UserError, match=f"x.gguf is of another size .* its {name} is 9,"):
            decode.check_size(size, meta | {name: 9}, "x.gguf")
    assert main(["bench", "decode", f"--gguf={tmp_path}/none"]) == 1
    assert "/none: there is no such file; write one" in capsys.readouterr().err
    monkeypatch.setattr(decode.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--gguf needs xllamacpp; pip install"):
        decode.llama_peer("x.gguf", "", 1, 8)


def test_the_bound_counts_every_weight_once_and_the_caches():
    size = Size(vocabulary=10, context=16, layers=2, heads=2, d_model=4, d_ff=8)
    params = {"embedding": jnp.zeros((10, 4)), "positions": jnp.zeros((16, 4))}
    found = decode.bytes_read(params, size, Compute("float32", cache_dtype="bfloat16"), 3, 5)
    assert found == 10 * 4 * 4 + 2 * 2 * 2 * 3 * 5 * 4


@pytest.mark.parametrize("name", ["a", "b"])
def test_int8_changes_perplexity_by_less_than_a_hundredth(name):
    size, params, content = golden.load(name)
    decoder = decode.Decoder(size, Compute("float32"))
    found = [
        decode.perplexity(decoder, for_decoding(params, size, "float32", int8), content["tokens"])
        for int8 in (False, True)
    ]
    expected = math.exp(content["loss_per_token"].mean())
    assert found[0] == pytest.approx(expected, rel=1e-4)
    assert found[1] == pytest.approx(expected, rel=0.01)
    assert found[1] != found[0]
