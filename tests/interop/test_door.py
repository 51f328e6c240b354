"""What a run holds is read as it was saved or not at all, whoever reads it."""

import json
import random
import shutil

import jax
import numpy as np
import pytest

from polylm_jax.__main__ import main
from polylm_jax.data.tokenizer import MODEL
from polylm_jax.errors import UserError
from polylm_jax.parallel.mesh import MeshShape, make_mesh
from polylm_jax.train import checkpoint, checksum
from polylm_jax.train.door import open_run, read_params, read_parts

FLIPS = 40


@pytest.fixture(params=["trained", "imported"])
def run(request, trained, weights, hugging_face, tmp_path):
    """A run of its own for each test, written by training or by import."""
    folder = tmp_path / "run"
    if request.param == "trained":
        shutil.copytree(trained, folder)
    else:
        assert main(["import", f"--from={hugging_face(weights)}", f"--run={folder}"]) == 0
    return folder


def whole(run):
    """Bytes of each parameter, as generate reads them."""
    mesh = make_mesh(MeshShape(1, 1, 1), jax.devices()[:1])
    leaves = jax.tree.leaves(read_params(open_run(str(run)), mesh))
    return [np.asarray(leaf).tobytes() for leaf in leaves]


def parts(run):
    """Bytes of each part, as export reads them."""
    return [(*part[:3], part.values.tobytes()) for part in read_parts(open_run(str(run)))]


def outcome(read, run, right):
    """What a flipped bit came to; a traceback fails the test."""
    try:
        return "the same" if read(run) == right else "other parameters"
    except UserError as refused:
        return "refused" if "is damaged (" in str(refused) else str(refused)


def stores(run):
    """Files of the arrays, newest first; each part that is written leaves an older tree behind."""
    (state,) = run.glob("checkpoints/*/state")
    files = [*state.rglob("d/*"), *state.rglob("manifest.ocdbt")]
    return sorted(files, key=lambda path: -path.stat().st_mtime_ns)


def flip(path, at, bit=6):
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def test_a_flipped_bit_changes_nothing_or_is_refused_by_all_readers(run):
    right = {read: read(run) for read in (whole, parts)}
    chance = random.Random(1)
    newest = stores(run)[:8]
    refused = 0
    for number in range(FLIPS):
        path = chance.choice(newest)
        content = path.read_bytes()
        flip(path, chance.randrange(len(content)), chance.randrange(8))
        found = {outcome(read, run, right[read]) for read in (whole, parts)}
        assert found in ({"the same"}, {"refused"}), f"flip {number} in {path}"
        refused += found == {"refused"}
        path.write_bytes(content)
    assert 5 <= refused < FLIPS


def test_the_command_line_refuses_an_altered_run_and_leaves_nothing(run, tmp_path, capsys):
    right = whole(run)
    for path in sorted(stores(run), key=lambda path: -path.stat().st_size):
        content = path.read_bytes()
        flip(path, int(len(content) * 0.9))
        if outcome(whole, run, right) == "refused":
            break
        path.write_bytes(content)
    verbs = (
        ["generate", "--prompt=A"],
        ["export", f"--to={tmp_path}/out"],
        ["export", f"--to={tmp_path}/out.gguf", "--format=gguf"],
    )
    for verb in verbs:
        assert main([verb[0], f"--run={run}", *verb[1:]]) == 1
        error = capsys.readouterr().err.splitlines()[-1]  # after the line of progress
        assert error.startswith(f"polylm {verb[0]}: the checkpoint of step ")
        assert "is damaged (" in error
        assert "there is none before it" in error
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_a_run_with_another_tokenizer_or_none_is_refused(run, tmp_path, capsys):
    model = run / MODEL
    swapped = model.read_bytes().replace(b"<unk>", b"<unk>\0")[:-1]
    for content, sentence in ((swapped, "is not the tokenizer that"), (None, "has no tokenizer")):
        model.unlink()
        if content:
            model.write_bytes(content)
        verbs = (
            ["generate", "--prompt=A"],
            ["chat"],
            ["score", f"--pairs={tmp_path}/pairs", f"--out={tmp_path}/scores"],
            ["export", f"--to={tmp_path}/out"],
        )
        pair = {"context": "A", "continuation": "b"}
        (tmp_path / "pairs").write_text(json.dumps(pair))
        for verb in verbs:
            assert main([verb[0], f"--run={run}", *verb[1:]]) == 1
            error = capsys.readouterr().err
            assert sentence in error
            assert "its sha256 begins" in error
    assert not (tmp_path / "out").exists()


def test_a_run_imported_before_there_were_sums_is_read_with_a_note(
    weights, hugging_face, tmp_path, capsys
):
    run = tmp_path / "run"
    assert main(["import", f"--from={hugging_face(weights)}", f"--run={run}"]) == 0
    manager = checkpoint.open_existing(str(run))
    meta = checkpoint.read_meta(manager, 0)
    checkpoint.write_meta(manager, 0, checkpoint.sealed(meta, 0, 0))
    assert main(["export", f"--run={run}", f"--to={tmp_path}/out"]) == 0
    assert "was imported without a checksum" in capsys.readouterr().err
    meta_file = run / "checkpoints/0/meta/metadata"
    meta_file.write_text(meta_file.read_text().replace('"rows": 0', '"rows": 1'))
    assert main(["export", f"--run={run}", f"--to={tmp_path}/other"]) == 1
    assert "the meta was altered" in capsys.readouterr().err


def test_another_size_than_the_runs_is_named_and_nothing_called_damaged(run, capsys):
    assert main(["generate", f"--run={run}", "--prompt=A", "--gin.model.context=16"]) == 1
    error = capsys.readouterr().err
    assert "model.context = " in error
    assert "(now 16)" in error
    assert "damaged" not in error


def test_a_sum_of_parts_is_the_sum_on_the_devices():
    values = np.random.default_rng(0).standard_normal((3, 10, 7)).astype(np.float32)
    tree = {"a": values, "layers": {"c": values[0]}, "b": values[:, 1]}
    sums = {
        "a": sum(
            checksum.part_sum(values[i : i + 1, j : j + 4], (i, j, 0), values.shape)
            for i in range(3)
            for j in range(0, 10, 4)
        ),
        "layers": {"c": checksum.part_sum(values[0], (0, 0), (10, 7))},
        "b": checksum.part_sum(values[:, 1], (0, 0), (3, 7)),
    }
    assert checksum.joined(sums) == int(checksum.state_checksum(tree))
    sums["b"] += 1
    assert checksum.joined(sums) != int(checksum.state_checksum(tree))
