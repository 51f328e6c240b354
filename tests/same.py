"""Whether another revision trains to the same bits: python -m tests.same REV (make same REV=main).

A small run on a 2 x 2 x 2 mesh of a CPU is made with the code of that revision and with the code
here, from the same rows. Compared are all losses, gradient norms and validations in the two logs
and the checksum of the parameters. Exit status 1 where anything differs.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
WATCHED = ("kind", "step", "tokens", "loss", "gradient_norm", "skipped", "bits_per_byte")


def results(run: Path) -> list[dict]:
    """What a run must give again, in order: what it logged, and the sum of its parameters."""
    records = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    kept = [{name: one[name] for name in WATCHED if name in one} for one in records]
    newest = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    meta = json.loads((newest / "meta" / "metadata").read_text("utf-8"))
    checksum = {"kind": "parameters", "step": int(newest.name), "sum": meta["params_checksum"]}
    return [*(one for one in kept if one["kind"] in ("train", "valid")), checksum]


def difference(before: list[dict], after: list[dict]) -> str:
    """The first thing that differs, or ""."""
    for old, new in zip(before, after, strict=False):
        if names := [n for n in old.keys() | new.keys() if old.get(n) != new.get(n)]:
            name = sorted(names)[0]
            return f"{new['kind']} {name} at step {new['step']}: {old.get(name)} -> {new.get(name)}"
    return "" if len(before) == len(after) else f"{len(before)} records -> {len(after)}"


def main(revision: str) -> int:
    """Compares the code here with a revision's."""
    from tests.conftest import TINY, gin_flags
    from tests.data.sentences import SENTENCES

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = ["git", "archive", revision, "polylm_jax", "gin_configs"]
        packed = subprocess.run(archive, cwd=ROOT, capture_output=True, check=True).stdout
        (folder / "code").mkdir()
        subprocess.run(["tar", "-x", "-C", folder / "code"], input=packed, check=True)
        for code, sentences in SENTENCES.items():
            (folder / "text" / code).mkdir(parents=True)
            turns = (" ".join(sentences[i:] + sentences[:i]) for i in range(len(sentences)))
            (folder / "text" / code / "prose.txt").write_text("\n\n".join(turns), "utf-8")
        settings = TINY | {"corpus.split": "\\n\\n", "corpus.text": folder / "text"}
        settings |= {f"{part}.path": folder / part for part in ("corpus", "tokenizer", "rows")}
        settings |= {"mesh.cpu_devices": 8, "train.log_every": 1, "train.folder": folder / "run"}

        def polylm(verb: str, code: Path, run: str = "") -> None:
            flags = gin_flags(settings | ({"train.folder": folder / run} if run else {}))
            environment = os.environ | {"PYTHONPATH": str(code), "JAX_PLATFORMS": "cpu"}
            command = [sys.executable, "-P", "-m", "polylm_jax", verb, *flags]
            subprocess.run(command, cwd=folder, env=environment, check=True)

        for verb in ("corpus", "tokenizer", "rows"):
            polylm(verb, ROOT)
        polylm("train", folder / "code", "before")
        polylm("train", ROOT, "after")
        before, after = results(folder / "before"), results(folder / "after")
    if differs := difference(before, after):
        print(f"Not the same as {revision}: {differs}.")
        return 1
    print(f"The same as {revision}, bit for bit: {len(after) - 1} records and the parameters.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
