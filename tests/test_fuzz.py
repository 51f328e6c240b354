"""No input ends in a traceback: flags, gin values, paths, JSON files that are odd, cut or wrong.

FUZZ_SECONDS=600 searches as long; FUZZ_SEED=N makes round N again, which a failure names.
"""

import contextlib
import copy
import io
import itertools
import json
import os
import random
import shutil
import signal
import time
import traceback
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from safetensors.numpy import save_file

from polylm_jax import config
from polylm_jax.__main__ import main

SECONDS = float(os.environ.get("FUZZ_SECONDS", "12"))
LONG = 30  # seconds after which a command counts as hanging
if "FUZZ_SEED" in os.environ:
    SEEDS = [int(os.environ["FUZZ_SEED"])]
else:  # who searches longer wants other rounds each time; the suite wants the same
    SEEDS = itertools.count(time.time_ns() if "FUZZ_SECONDS" in os.environ else 0)

ODD_VALUES = [None, True, False, 0, -1, 1, 2.5, -0.0, 1e308, float("nan"), float("inf"), 10**30]
ODD_VALUES += ["", "x", "\ud83d", "\x00", "\x1b[2J", "a" * 300, [], {}, [[]], [None], {"": {}}]
ODD_VALUES += [{"x": [1, "y"]}, [0, 1], "../..", "é", -(2**63), 2**64]

ODD_WORDS = ["", " ", "0", "-1", "1e400", "nan", "-inf", "9" * 400, "None", "True", "()", "[", "(("]
ODD_WORDS += ["'", "@x", "@x()", "%x", "{'a': 1}", "((0, 0.3), (1, 2))", "x=y", "=", "\x00"]
ODD_WORDS += [
    "\udcff",
    "é\u202e",
    "(" * 300,
    "1," * 300,
    "\n",
    "a\nb",
    "#",
    "'''",
    '"\\',
    "0x",
    "1_0",
]
ODD_WORDS += ["1j", "b'x'", "1e-400", "-", "*"]

ODD_PATHS = ["", " ", ".", "..", "/", "//", "~", "~nobody9/x", "./~", "a*b", "r[lr=1]", "?", "\x00"]
ODD_PATHS += ["\udcff", "\ud83d", "x" * 300, "x/" * 3000, "nowhere", "nowhere/x", "a file"]
ODD_PATHS += ["a file/x", "/dev/null", "loop", "dangling", "gs:/x", "gss://x", "gs://"]
ODD_PATHS += ["://", "a::b", "memory://x", "memory://a::b", "simplecache::memory://x", "file://"]
ODD_PATHS += ["file:///nowhere/x", "http:/x", "zip://x", "dir://x", "reference://", "data:x"]
ODD_PATHS += ["github://x", "hf://x"]


def odd_json(random_, value):
    """Text of a JSON value of which something is changed, missing, or cut."""
    value = json.loads(json.dumps(value))
    for _ in range(random_.choice([0, 1, 1, 1, 2, 5])):
        value = changed(random_, value)
    text = json.dumps(value, ensure_ascii=random_.random() < 0.8).encode("utf-8", "surrogatepass")
    how = random_.random()
    if how < 0.1:
        text = text[: random_.randrange(len(text) + 1)]
    elif how < 0.2 and text:
        at = random_.randrange(len(text))
        text = text[:at] + bytes([random_.randrange(256)]) + text[at + 1 :]
    elif how < 0.23:
        text = random_.choice(
            [b"", b"[" * 100_000, b"\xff\xfe", b"\xef\xbb\xbf{}", b"9" * 5000, b"null"]
        )
    return text


def changed(random_, value):
    """The value with one part of it replaced or taken out."""
    if isinstance(value, dict | list) and value and random_.random() < 0.9:
        key = random_.choice(list(value) if isinstance(value, dict) else range(len(value)))
        if random_.random() < 0.2:
            del value[key]
        else:
            value[key] = changed(random_, value[key])
        return value
    return copy.deepcopy(random_.choice(ODD_VALUES))


class World:
    """A folder with a corpus, a run and a Hugging Face folder, whose files a round may spoil."""

    def __init__(self, root, tiny):
        self.root = root
        text, corpus, run, hf = (root / name for name in ("text", "corpus", "run", "hf"))
        for folder in (text / "de", run / "checkpoints", hf, root / "locked"):
            folder.mkdir(parents=True)
        lines = [{"text": f"Der {i}. Satz ist kurz."} for i in range(20)]
        (text / "de" / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
        (root / "a file").write_text("x")
        (root / "loop").symlink_to("loop")
        (root / "dangling").symlink_to("nowhere at all")
        with silent():
            assert main(["corpus", f"--gin.corpus.text={text}", f"--gin.corpus.path={corpus}"]) == 0
        shutil.copytree(tiny["tokenizer.path"], root / "tokenizer")
        shutil.copytree(tiny["rows.path"], root / "rows")
        shutil.copy(root / "tokenizer/tokenizer.model", hf)
        save_file({"transformer.wpe.weight": np.zeros((4, 8), "f")}, hf / "model.safetensors")
        self.whole = {file: file.read_bytes() for file in self.files()}

    def files(self):
        return [file for file in self.root.rglob("*") if file.is_file() and not file.is_symlink()]

    def mend(self):
        """Puts back what a round has spoilt, and takes away what it has made."""
        for file in self.files():
            if file not in self.whole:
                file.unlink()
        for file, content in self.whole.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.is_file() or file.read_bytes() != content:
                file.write_bytes(content)


BEAT = {"time": 1.0, "moved": 1.0, "state": "running", "host": "h", "pid": 1, "step": 5, "steps": 9}
BEAT |= {"processes": 1, "loss": 2.0, "loss_before": 2.5, "steps_per_second": 3.0, "skipped": 0}
BEAT |= {
    "tokens_per_second": 9.0,
    "slowest_host": 0,
    "slowest_host_seconds": 0.1,
    "memory_gib": 1.0,
}
TRAIN = {"kind": "train", "tokens": 8, "loss": 3.0, "row_counts": {"en": 1, "de": 2}}
TRAIN |= {"schedule_counts": {"en": 1.5, "de": 1.5}, "skipped": 0}
VALID = {"kind": "valid", "tokens": 8, "loss": {"en": 1.0}, "bits_per_byte": {"en": 2.0}}
GPT2 = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "vocab_size": 1024,
    "n_positions": 4,
}
GPT2 |= {"n_layer": 1, "n_head": 2, "n_embd": 8, "n_inner": 16, "layer_norm_epsilon": 1e-5}


def settings(random_):
    names = [f"{name}.{f.name}" for name, block in config.BLOCKS.items() for f in fields(block)]
    return [f"--gin.{random_.choice(names)}={random_.choice(ODD_WORDS)}" for _ in range(2)]


def odd_flags(random_, world):
    words = [
        *ODD_WORDS,
        "--",
        "-",
        "--gin.",
        "--gin.=",
        "--gin.train",
        "--gin.a/train.steps=5",
        "--x=y",
    ]
    words += [
        "--gin_file=",
        f"--gin_file={random_.choice(ODD_PATHS)}",
        "--help",
        "-h",
        "--run",
        "--ru=x",
    ]
    verb = random_.choice(
        ["config", "status", "report", "score", "plan", "bench", "export", "nonsense"]
    )
    return [verb, *random_.choices(words, k=random_.choice([1, 2]))]


def odd_settings(random_, world):
    return ["config", *settings(random_)]


def odd_gin_file(random_, world):
    lines = [
        "train.steps = 5",
        "include 'odd.gin'",
        "include 'a file'",
        "import os",
        "x = 5",
        "# é",
        "",
    ]
    lines += [f"model.layers = {random_.choice(ODD_WORDS)}", f"{random_.choice(ODD_WORDS)} = 1"]
    lines += [
        "train.folder = '\\ud83d'",
        "a/train.steps = 3",
        "train.steps = %x",
        "train.seed = @train()",
    ]
    text = "\n".join(random_.choices(lines, k=3)).encode("utf-8", "surrogateescape")
    (world.root / "odd.gin").write_bytes(text + random_.choice([b"", b"\xff", b"\x00", b"("]))
    return ["config", "--gin_file=odd.gin"]


def odd_heartbeat(random_, world):
    (world.root / "run/heartbeat.json").write_bytes(odd_json(random_, BEAT))
    return ["status", "--run=run"]


def odd_log(random_, world):
    records = [VALID | {"step": 0}, TRAIN | {"step": 1}, TRAIN | {"step": 2}, VALID | {"step": 2}]
    lines = [
        odd_json(random_, r) if random_.random() < 0.3 else json.dumps(r).encode() for r in records
    ]
    (world.root / "run/metrics.jsonl").write_bytes(b"\n".join([*lines, b""]))
    (world.root / "run/samples.txt").write_bytes(random_.choice([b"", b"\xff\x1b[2J", b"x"]))
    return ["report", "--run=run"]


def odd_prompts(random_, world):
    lines = [
        odd_json(random_, {"prompt": "a", "context": "b", "continuation": "c"}) for _ in range(2)
    ]
    (world.root / "asked.jsonl").write_bytes(b"\n".join([*lines, b"{}"]))
    out = random_.choice(["out.jsonl", "/dev/full", *ODD_PATHS])
    return random_.choice(
        [
            ["generate", "--run=run", "--prompts=asked.jsonl", f"--out={out}"],
            ["score", "--run=run", "--pairs=asked.jsonl", f"--out={out}"],
            ["generate", "--run=run", f"--prompt={random_.choice(ODD_WORDS)}"],
        ]
    )


def odd_hugging_face(random_, world):
    (world.root / "hf/config.json").write_bytes(odd_json(random_, GPT2))
    weights = world.root / "hf/model.safetensors"
    index = {"weight_map": {"transformer.wpe.weight": "model.safetensors"}}
    how = random_.random()
    if how < 0.3:
        (world.root / "hf/model.safetensors.index.json").write_bytes(odd_json(random_, index))
    elif how < 0.6:
        content = weights.read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = odd_json(random_, json.loads(content[8 : 8 + size]))
        weights.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    elif how < 0.7:
        spoil(random_, world.root / "hf/tokenizer.model")
    return ["import", "--from=hf", "--run=imported"]


def odd_stores(random_, world):
    name = random_.choice(["corpus/manifest.json", "rows/manifest.json", "tokenizer/manifest.json"])
    file = world.root / name
    file.write_bytes(odd_json(random_, json.loads(file.read_text())))
    if random_.random() < 0.2:
        spoil(random_, world.root / "corpus/de/train.jsonl")
    places = ["--gin.corpus.path=corpus", "--gin.rows.path=rows", "--gin.tokenizer.path=tokenizer"]
    small = [
        "--gin.train.steps=3",
        "--gin.train.batch=2",
        "--gin.rows.length=16",
        "--gin.curriculum.extras={}",
    ]
    verbs = [["rows"], ["rows", "verify"], ["rows", "show", "1"], ["curriculum"], ["tokenizer"]]
    verbs += [["rows", "show", "1", "--source=de"], ["rows", "show", random_.choice(ODD_WORDS)]]
    return [*random_.choice(verbs), *places, *small, "--gin.train.folder=run"]


def odd_text(random_, world):
    (world.root / "text/de/b.jsonl").write_bytes(odd_json(random_, {"text": "Ein Satz."}))
    (world.root / "text/de/c.txt").write_bytes(
        random_.choice([b"", b"\xff", b"\x00", b"a\r\n\r\nb"])
    )
    return ["corpus", "--gin.corpus.text=text", "--gin.corpus.path=corpus"]


def odd_paths(random_, world):
    path = random_.choice(ODD_PATHS)
    text = path if path.strip("/. ") else "nowhere"  # not the whole disk, and not packages
    return random_.choice(
        [
            ["status", f"--run={path}"],
            ["report", f"--run={path}"],
            ["generate", f"--run={path}", "--prompt=x"],
            ["export", f"--run={path}", f"--to={random_.choice(ODD_PATHS)}"],
            [
                "import",
                f"--from={random_.choice(['hf', path])}",
                f"--run={random_.choice(ODD_PATHS)}",
            ],
            [
                "config",
                f"--gin.train.folder={path}",
                f"--gin.rows.path={random_.choice(ODD_PATHS)}",
            ],
            ["rows", f"--gin.corpus.path={path}"],
            ["rows", "verify", f"--gin.rows.path={path}"],
            [
                "tokenizer",
                "--gin.corpus.path=corpus",
                "--gin.tokenizer.path=tok2",
                f"--gin.tokenizer.model={path}",
            ],
            ["tokenizer", "--gin.tokenizer.model=tokenizer", f"--gin.tokenizer.path={path}"],
            [
                "corpus",
                f"--gin.corpus.text={text}",
                "--gin.corpus.path=corpus2",
            ],
            ["corpus", "--gin.corpus.text=text", f"--gin.corpus.path={path}"],
            [
                "curriculum",
                f"--gin.rows.path={path}",
                "--gin.train.steps=2",
                "--gin.train.folder=run",
            ],
            ["bench", "decode", f"--run={path}"],
            ["plan", "--gin_file=nowhere.gin", f"--json={path}"],
        ]
    )


CASES = [odd_flags, odd_settings, odd_settings, odd_gin_file, odd_heartbeat, odd_log, odd_prompts]
CASES += [odd_hugging_face, odd_stores, odd_stores, odd_text, odd_paths, odd_paths, odd_paths]


def spoil(random_, file):
    content = file.read_bytes()
    at = random_.randrange(len(content))
    file.write_bytes(
        random_.choice([content[:at], content[:at] + b"\xff" + content[at + 1 :], b""])
    )


@contextlib.contextmanager
def silent():
    """What is said inside, on both streams, in one."""
    said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        yield said


@pytest.fixture(scope="module")
def world(tiny, tmp_path_factory):
    return World(tmp_path_factory.mktemp("fuzz"), tiny)


def test_no_input_ends_in_a_traceback(world, monkeypatch):
    monkeypatch.chdir(world.root)
    monkeypatch.setenv("HOME", str(world.root / "home"))
    # drawing takes seconds and reads no input
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: Path(path).touch())
    found, end = {}, time.monotonic() + SECONDS
    for seed in SEEDS:
        random_ = random.Random(seed)
        arguments = random_.choice(CASES)(random_, world)
        if trace := trace_of(arguments):
            found.setdefault(
                trace.splitlines()[-3:-1][0], f"FUZZ_SEED={seed}: {arguments}\n{trace}"
            )
        world.mend()
        if time.monotonic() > end:
            break
    print(f"Tried the rounds up to {seed}.")
    assert not found, f"{len(found)} kinds of tracebacks:\n" + "\n".join(found.values())


class TooLong(BaseException):
    """No error that anybody catches."""


def too_long(number, frame):
    raise TooLong(f"more than {LONG} s")


def trace_of(arguments):
    """The trace with which a command ends, or what it says where that is no sentence, or ""."""
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LONG)
    with silent() as said:
        try:
            status = main(arguments)
        except SystemExit as ended:
            status = ended.code
        except BaseException:
            return traceback.format_exc()
        finally:
            signal.alarm(0)
    said.seek(0)
    words = said.read()
    last = words.rstrip().rpartition("\n")[2]
    sentence = last.startswith(f"polylm {arguments[0]}: ") or arguments[0] == "status"
    return "" if status == 0 or sentence else f"no sentence\n{words}\n{status}"
