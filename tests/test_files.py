"""What a path means, and that nothing is replaced before what takes its place is whole."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import fsspec
import pytest

from polylm_jax.data.replacing import only_writer
from polylm_jax.errors import UserError
from polylm_jax.files import (
    already_made,
    destination,
    existing,
    is_free,
    local,
    lock,
    new_folder,
    new_place,
    output,
    place,
    put,
    resumed_folder,
    take_room,
)
from polylm_jax.jsonl import Record
from polylm_jax.records import results


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A folder that is both where we are and whose we are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize(
    ("given", "understood"),
    [
        ("runs/a/", "runs/a"),
        ("./runs//a/.", "runs/a"),
        ("/x/../y", "/x/../y"),  # what .. leaves depends on links
        ("~/a", "{home}/home/a"),
        ("./~/a", "{home}/~/a"),
        ("a/~", "a/~"),
        ("r[lr=1]", "r[lr=1]"),
        ("a*b?", "a*b?"),
        ("a::b", "a::b"),
        ("./gs:/a", "{home}/gs:/a"),
        ("c:/a", "{home}/c:/a"),
        ("file:///a/b/", "/a/b"),
        ("gs://bucket/a/", "gs://bucket/a"),
        ("memory://a*b", "memory://a*b"),
    ],
)
def test_a_path_means_one_thing_however_often_it_is_asked(given, understood, home):
    meant = place(given, "--run")
    assert meant == understood.format(home=home)
    assert place(meant, "--run") == meant


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("", "--run is empty"),
        ("  ", "--run is empty"),
        ("a\0b", "a character that no path can have"),
        ("\ud83d", "a character that no path can have"),
        ("gs:/bucket/a", r"write gs://bucket/a, or \./gs:/bucket/a"),
        ("gss://bucket", "the nearest is gs://"),
        ("GS://bucket", "the nearest is gs://"),
        ("gs://", "names nothing"),
        ("~nobody_9/a", r"no user nobody_9; write \./~nobody_9/a"),
    ],
)
def test_what_is_no_path_is_one_sentence_that_names_the_flag(given, sentence):
    with pytest.raises(UserError, match=sentence) as raised:
        place(given, "--run")
    assert str(raised.value).startswith("--run")


def test_a_link_to_itself_is_no_place(home):
    (home / "loop").symlink_to("loop")
    for path in ("loop", "loop/run"):
        with pytest.raises(UserError, match=f"--run={path} is a link that leads to itself"):
            place(path, "--run")


def test_what_must_be_here_may_not_be_elsewhere():
    with pytest.raises(UserError, match=r"--to=gs://b/a must be on this machine"):
        local("gs://b/a", "--to")


def test_a_folder_that_is_not_there_is_told_with_the_nearest_name(home):
    (home / "runs" / "demo").mkdir(parents=True)
    assert existing("runs/demo/", "--run") == "runs/demo"
    with pytest.raises(UserError, match=r"no folder runs/dmeo; the nearest name there is demo; "):
        existing("runs/dmeo", "--run")
    with pytest.raises(UserError, match=r"there is no folder run/demo; mend --run\."):
        existing("run/demo", "--run")


def test_a_folder_elsewhere_that_is_not_there_is_told():
    folder = f"memory://{uuid.uuid4()}"
    with pytest.raises(UserError, match="there is no folder memory://"):
        existing(folder, "--run")
    put(f"{folder}/heartbeat.json", b"{}")
    assert existing(folder, "--run") == folder


def break_off(path):
    with output(path) as file:
        file.write(b"half")
        file.flush()
        raise ZeroDivisionError


def test_an_old_file_stays_until_the_new_one_is_whole(home):
    old = home / "scores.jsonl"
    old.write_text("old")
    old.chmod(0o640)
    with pytest.raises(ZeroDivisionError):
        break_off("scores.jsonl")
    assert [path.name for path in home.iterdir()] == ["scores.jsonl"]
    assert old.read_text() == "old"
    with output("scores.jsonl") as file:
        file.write(b"new")
    assert old.read_text() == "new"
    assert stat.S_IMODE(old.stat().st_mode) == 0o640


def test_a_link_stays_and_its_file_is_replaced(home):
    (home / "disk").mkdir()
    for target in ("disk/there", "disk/not yet"):
        link = home / f"link to {Path(target).name}"
        link.symlink_to(target)
        with output(str(link)) as file:
            file.write(b"new")
        assert link.is_symlink()
        assert (home / target).read_text() == "new"


def test_a_pipe_is_written_through(home):
    os.mkfifo("pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append(Path("pipe").read_bytes()))
    reader.start()
    with output(destination("pipe", "--out")) as file:
        file.write(b"through")
    reader.join(10)
    assert read == [b"through"]
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)


def test_a_device_stays_a_device():
    with output(destination("/dev/null", "--out")) as file:
        file.write(b"gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_results_go_to_a_url_when_they_are_whole():
    url = destination(f"memory://{uuid.uuid4()}/scores.jsonl", "--out")
    files = fsspec.filesystem("memory")
    with pytest.raises(ZeroDivisionError):
        break_off(url)
    assert not files.exists(url)
    with output(url) as file:
        file.write(b"whole")
    assert files.cat_file(url) == b"whole"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [(".", "is a folder; name a file"), ("nowhere/a", "there is no folder .*nowhere; make it")],
)
def test_a_place_where_no_file_can_be_is_told_at_once(given, sentence):
    with pytest.raises(UserError, match=f"--out={given}:? {sentence}"):
        destination(given, "--out")


@pytest.mark.parametrize("make", [new_folder, partial(resumed_folder, made_from={})])
def test_an_empty_folder_and_a_link_may_be_taken_and_what_is_full_may_not(make, home):
    def fill(path):
        with make(path) as made:
            whole = made[1] if isinstance(made, tuple) else made
            (whole / "a").write_text("new")

    (home / "empty").mkdir()
    (home / "disk").mkdir()
    (home / "link").symlink_to("disk/out")
    for path in ("empty", "link", "none"):
        assert is_free(path)
        fill(path)
        assert (home / path / "a").read_text() == "new"
    assert (home / "link").is_symlink()
    (home / "full").mkdir()
    (home / "full" / "b").touch()
    for path in ("full", "full/b"):
        assert not is_free(path)
        with pytest.raises(UserError, match=f"{path} already exists"):
            fill(path)
        with pytest.raises(UserError, match=f"--to={path} already exists"):
            new_place(path, "--to")
    assert [path.name for path in (home / "full").iterdir()] == ["b"]


def test_an_empty_folder_is_nobodys_work_and_a_cut_manifest_is_anothers(home):
    (home / "rows").mkdir()
    assert not already_made("rows", {"length": 3})
    (home / "rows" / "manifest.json").write_text('{"made_from": {"len')
    with pytest.raises(UserError, match="rows was made from other text"):
        already_made("rows", {"length": 3})


def test_a_file_that_many_write_at_once_is_whole_and_of_one_of_them(tmp_path):
    contents = [bytes([65 + i]) * (1000 + 300 * i) for i in range(8)]
    for _ in range(20):
        together = threading.Barrier(len(contents))

        def write(content, together=together):
            together.wait()
            put(f"{tmp_path}/x.json", content)

        with ThreadPoolExecutor(len(contents)) as pool:
            list(pool.map(write, contents))  # raises where one of them could not
        assert (tmp_path / "x.json").read_bytes() in contents
    assert os.listdir(tmp_path) == ["x.json"]


def test_results_stand_in_our_output_where_they_were_written(home):
    writes = """
from polylm_jax.files import output
print("before")
with output("/dev/stdout") as file:
    file.write(b"results\\n")
print("after")
"""
    with open(home / "all", "w") as out:
        environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
        subprocess.run([sys.executable, "-c", writes], stdout=out, env=environment, check=True)
    assert (home / "all").read_text() == "before\nresults\nafter\n"


def test_room_is_taken_at_once_or_refused(home, largest_file):
    whole, too_large = home / "whole", home / "too large"
    with open(whole, "wb") as file:
        take_room(file, 2**16)
    found = whole.stat()
    assert found.st_size == 2**16 <= 512 * found.st_blocks  # no hole that may find the disk full
    largest_file(2**20)
    with open(too_large, "wb") as file, pytest.raises(UserError, match=r"no room for the 0\.01 GB"):
        take_room(file, 10**7)


def test_who_locks_a_file_has_it_alone_but_where_there_are_no_locks(tmp_path, monkeypatch):
    with open(tmp_path / "x", "wb") as one, open(tmp_path / "x", "wb") as other:
        assert lock(one)
        with pytest.raises(BlockingIOError):
            lock(other)

        def refuse(file, how):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
        assert not lock(other)
    with results(
        [Record("x:1", {}, "is none")], str(tmp_path / "out.jsonl"), {}, "prompts"
    ) as kept:
        assert kept.left == []
    with only_writer(tmp_path):
        pass
