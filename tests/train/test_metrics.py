"""What a run logs comes back: from a disk, and in parts from a store that appends to nothing."""

import tracemalloc

import fsspec
import pytest
import tensorflow as tf

from polylm_jax.data import tokenizer
from polylm_jax.files import put
from polylm_jax.runs.log import read_metrics
from polylm_jax.train.metrics import Metrics


def record(step, loss):
    return {"kind": "other", "step": step, "loss": loss, "row_counts": {"en": 1}}


def scalars(folder):
    """What TensorBoard shows, of events as TensorFlow reads them: (tag, step, value).

    As in its event_accumulator, a start at a step drops all that is there of that step and later
    ones; files are read by name.
    """
    shown = []
    for path in sorted(folder.glob("*tfevents*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            if event.session_log.status == tf.compat.v1.SessionLog.START:
                shown = [one for one in shown if one[1] < event.step]
            shown += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
    return shown


@pytest.fixture
def bucket():
    yield "memory://bucket/run"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_tensorflow_reads_what_was_logged(tmp_path):
    with Metrics(str(tmp_path), active=True) as metrics:
        for step in (1, 2):
            metrics.write(record(step, step / 4))
    assert scalars(tmp_path / "tensorboard") == [("other/loss", 1, 0.25), ("other/loss", 2, 0.5)]


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_tensorboard_shows_each_step_of_the_branch_that_is_alive_once(scheme, tmp_path):
    folder = f"{scheme}{tmp_path}/run"
    # all starts within a second, as after a crash at once
    for loss, (first, last) in enumerate([(0, 12), (5, 9), (9, 9), (7, 8), (8, 10)]):
        with Metrics(folder, active=True) as metrics:
            metrics.start(first)
            for step in range(first + 1, last + 1):
                metrics.write(record(step, loss))
    files, place = fsspec.url_to_fs(folder)
    files.get(f"{place}/tensorboard", str(tmp_path / "board"), recursive=True)
    expected = [0] * 5 + [1, 1] + [3] + [4, 4]
    assert scalars(tmp_path / "board") == [
        ("other/loss", step, loss) for step, loss in enumerate(expected, 1)
    ]
    assert [(one["step"], one["loss"]) for one in read_metrics(folder)] == list(
        enumerate(expected, 1)
    )


def test_a_start_reads_the_end_of_a_log_not_all_of_it(tmp_path):
    line = b'{"kind": "other", "step": 1, "more": "%s"}\n' % (b"x" * 958)
    (tmp_path / "metrics.jsonl").write_bytes(line * 50_000 + b'{"kind": "oth')
    tracemalloc.start()
    with Metrics(str(tmp_path), active=True) as metrics:
        assert metrics.reaches_beyond(0)
        metrics.start(1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 << 20 < len(line) * 50_000
    with (tmp_path / "metrics.jsonl").open("rb") as file:
        file.seek(len(line) * 50_000)
        assert file.read().startswith(b'{"kind": "start", "step": 1, "time": "2')


def test_a_bucket_has_the_log_in_parts_whose_names_are_in_the_order_of_time(bucket, tmp_path):
    with Metrics(bucket, active=True) as metrics:
        metrics.write(record(1, 5.0))
        metrics.publish()
        metrics.publish()  # nothing is new
        metrics.write(record(2, 4.0))
        metrics.write(record(3, 3.0))
    with Metrics(bucket, active=True) as metrics:
        metrics.start(1)
        metrics.write(record(2, 1.0))
    files = fsspec.filesystem("memory")
    names = [path.rpartition("/")[2] for path in sorted(files.glob("/bucket/run/*.jsonl"))]
    assert names == [f"metrics-{number:09d}.jsonl" for number in (1, 3, 4)]
    assert [one["loss"] for one in read_metrics(bucket)] == [5.0, 1.0]
    files.get("/bucket/run/tensorboard", str(tmp_path / "board"), recursive=True)
    assert [step for _, step, _ in scalars(tmp_path / "board")] == [1, 2]


def test_a_bucket_that_does_not_answer_gets_the_log_at_the_next_checkpoint(
    bucket, monkeypatch, capsys
):
    def away(*_):
        raise TimeoutError("no answer")

    with Metrics(bucket, active=True) as metrics:
        metrics.write(record(1, 5.0))
        with monkeypatch.context() as outage:
            outage.setattr(metrics._files, "put_file", away, raising=False)
            metrics.publish()
        assert not fsspec.filesystem("memory").glob("/bucket/run/*.jsonl")
        metrics.write(record(2, 4.0))
        metrics.publish()
        assert [one["loss"] for one in read_metrics(bucket)] == [5.0, 4.0]
        metrics.write(record(3, 3.0))
        monkeypatch.setattr(metrics._files, "put_file", away, raising=False)
        with pytest.raises(TimeoutError):  # there is no next one
            metrics.__exit__(None, None, None)
        monkeypatch.undo()
    assert capsys.readouterr().err.count("(no answer); that is tried again") == 1


def test_a_tokenizer_is_put_in_a_bucket_and_read_there(bucket, tiny):
    kept = tokenizer.load(str(tiny["tokenizer.path"]))
    put(f"{bucket}/{tokenizer.MODEL}", kept.model)
    assert tokenizer.load(f"{bucket}/{tokenizer.MODEL}").fingerprint == kept.fingerprint
    assert tokenizer.load(bucket).fingerprint == kept.fingerprint
