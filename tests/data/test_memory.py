"""The memory of corpus, tokenizer and rows is a constant: measured in processes of their own."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.sentences import SENTENCES

SIZES = (6_000_000, 24_000_000)
MOST_MORE = 25  # megabytes that 18 million bytes more may take: noise, and a last buffer

PROGRAM = """
import sys
from polylm_jax.data import corpus, packing, tokenizer
from polylm_jax.data.rows import RowSettings
verb, folder = sys.argv[1:]
packing.PART_BYTES = 2_000_000  # several parts at either size
text, path = f"{folder}/text", f"{folder}/corpus"
made = tokenizer.TokenizerTraining(f"{folder}/tokenizer", pieces=600, sample_megabytes=0.3)
if verb == "corpus":
    corpus.build(corpus.Corpus(path, text), large=False)
elif verb == "tokenizer":
    tokenizer.bytes_per_token(tokenizer.train(made, path), path)
else:
    packing.build(RowSettings(f"{folder}/rows", 64), path, tokenizer.load(made.path), workers=1)
# ru_maxrss would begin with what the process had that started this one
[most] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(most) / 1024)
"""


def write_text(folder, size):
    """Half of it in documents of some kilobytes, one of twenty twice, half in one document."""
    source = random.Random(0)
    sentences = [sentence for code in ("de", "th", "ru") for sentence in SENTENCES[code]]
    (folder / "text" / "de").mkdir(parents=True)
    written, last = 0, ""
    with (
        open(folder / "text/de/a.jsonl", "w", encoding="utf-8") as lines,
        open(folder / "text/de/b.txt", "w", encoding="utf-8") as long,
    ):
        while written < size:
            text = " ".join(source.choices(sentences, k=20))
            last = text if source.random() > 0.05 else last or text
            lines.write(json.dumps({"text": last}, ensure_ascii=False) + "\n")
            long.write(text + "\n")
            written += 2 * len(text.encode())


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """{verb: [megabytes at each size]}"""
    result = {}
    for size in SIZES:
        folder = tmp_path_factory.mktemp(f"of{size}")
        write_text(folder, size)
        for verb in ("corpus", "tokenizer", "rows"):
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, verb, str(folder)],
                capture_output=True,
                text=True,
                cwd=Path(__file__).parents[2],
            )
            assert done.returncode == 0, done.stderr
            result.setdefault(verb, []).append(float(done.stdout.split()[-1]))
    return result


@pytest.mark.parametrize("verb", ["corpus", "tokenizer", "rows"])
def test_memory_does_not_grow_with_the_text(used, verb):
    small, large = used[verb]
    assert large - small < MOST_MORE, used
