"""What a run logs comes back: from a disk, and in parts from a store that appends to nothing."""

import fsspec
import pytest
import tensorflow as tf

from polylm_jax.data import tokenizer
from polylm_jax.files import put
from polylm_jax.runs import read_metrics
from polylm_jax.train.metrics import Metrics


def record(step, loss):
    return {"kind": "other", "step": step, "loss": loss, "row_counts": {"en": 1}}


def scalars(folder):
    """What TensorFlow reads of the event files: (tag, step, value)."""
    events = [
        event
        for path in sorted(folder.glob("events*"))
        for event in tf.compat.v1.train.summary_iterator(str(path))
    ]
    return [(value.tag, e.step, value.simple_value) for e in events for value in e.summary.value]


@pytest.fixture
def bucket():
    yield "memory://bucket/run"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_tensorflow_reads_what_was_logged(tmp_path):
    with Metrics(str(tmp_path), active=True) as metrics:
        for step in (1, 2):
            metrics.write(record(step, step / 4))
    assert scalars(tmp_path / "tensorboard") == [("other/loss", 1, 0.25), ("other/loss", 2, 0.5)]


def test_a_bucket_has_the_log_in_parts_and_a_part_again_where_a_run_went_back(bucket, tmp_path):
    with Metrics(bucket, active=True) as metrics:
        metrics.write(record(1, 5.0))
        metrics.publish()
        metrics.publish()  # nothing is new
        metrics.write(record(2, 4.0))
        metrics.write(record(3, 3.0))
    with Metrics(bucket, active=True) as metrics:  # goes on from step 2
        for step in (3, 4):
            metrics.write(record(step, 1.0))
    files = fsspec.filesystem("memory")
    names = [path.rpartition("/")[2] for path in sorted(files.glob("/bucket/run/*.jsonl"))]
    assert names == [f"metrics-{step:09d}.jsonl" for step in (1, 3, 4)]
    assert [one["loss"] for one in read_metrics(bucket)] == [5.0, 4.0, 1.0, 1.0]
    files.get("/bucket/run/tensorboard", str(tmp_path / "board"), recursive=True)
    assert {step for _, step, _ in scalars(tmp_path / "board")} == {1, 2, 3, 4}


def test_a_tokenizer_is_put_in_a_bucket_and_read_there(bucket, tiny):
    kept = tokenizer.load(str(tiny["tokenizer.path"]))
    put(f"{bucket}/{tokenizer.MODEL}", kept.model)
    assert tokenizer.load(f"{bucket}/{tokenizer.MODEL}").fingerprint == kept.fingerprint
    assert tokenizer.load(bucket).fingerprint == kept.fingerprint
