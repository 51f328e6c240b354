"""The old corpus stays until the new one stands: through links, failures and kills."""

import errno
import fcntl
import os
import shutil
from pathlib import Path

import pytest

from polylm_jax.data import corpus, replacing
from polylm_jax.data.corpus import Corpus
from polylm_jax.errors import UserError


def build(folder, texts, name="corpus"):
    """A corpus of these texts of each source."""
    shutil.rmtree(folder / "text", ignore_errors=True)
    for source, text in texts.items():
        (folder / "text" / source).mkdir(parents=True)
        (folder / "text" / source / "a.txt").write_text(text)
    settings = Corpus(str(folder / name), str(folder / "text"), valid_share=0.0)
    return corpus.build(settings, False, progress=lambda line: None)


def content(folder, name="corpus"):
    path = str(folder / name)
    return {s: list(corpus.documents(path, s, "train")) for s in corpus.sources(path)}


OLD, NEW = {"hi": "old", "sw": "old too"}, {"hi": "new", "cs": "new too"}


def test_links_are_followed_and_nothing_behind_them_goes(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "corpus").symlink_to("disk")
    build(tmp_path, OLD)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "disk/hi").rename(tmp_path / "elsewhere/hi")
    (tmp_path / "disk/hi").symlink_to("../elsewhere/hi")
    (tmp_path / "disk/packages").mkdir()
    (tmp_path / "disk/notes.txt").write_text("mine")
    build(tmp_path, NEW)
    assert content(tmp_path) == {"cs": ["new too"], "hi": ["new"]}
    assert (tmp_path / "corpus").is_symlink()
    assert (tmp_path / "elsewhere/hi/train.jsonl").is_file()
    assert sorted(os.listdir(tmp_path / "disk")) == [
        *("cs", "hi", "manifest.json", "notes.txt", "packages"),
    ]


@pytest.mark.parametrize("call", range(1, 6))
def test_a_move_that_fails_leaves_the_old_one(tmp_path, monkeypatch, call):
    build(tmp_path, OLD)
    plain, calls = Path.rename, []

    def failing(self, target):
        calls.append(target)
        if len(calls) == call + 1:  # the first brings the new one beside the old
            raise OSError(errno.EBUSY, "Device or resource busy")
        return plain(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(UserError, match=r"cannot be replaced \(Device .* still is"):
            build(tmp_path, NEW)
    assert content(tmp_path) == {"hi": ["old"], "sw": ["old too"]}
    assert sorted(os.listdir(tmp_path / "corpus")) == ["hi", "manifest.json", "sw"]
    build(tmp_path, NEW)
    assert sorted(os.listdir(tmp_path / "corpus")) == ["cs", "hi", "manifest.json"]


class Killed(BaseException):
    """What no handler of ours catches: as if the process were gone."""


@pytest.mark.parametrize("call", range(1, 7))
def test_a_kill_between_two_moves_loses_nothing(tmp_path, monkeypatch, call):
    build(tmp_path, OLD)
    plain, calls = Path.rename, []

    def killed(self, target):
        calls.append(target)
        if len(calls) == call + 1:
            raise Killed
        return plain(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(Killed):
            build(tmp_path, NEW)
    root = tmp_path / "corpus"
    if (root / "manifest.json").is_file():  # what has a manifest is whole
        assert set(content(tmp_path)) in ({"hi", "sw"}, {"hi", "cs"})
    with replacing.only_writer(root):
        pass
    assert content(tmp_path) == {"cs": ["new too"], "hi": ["new"]}
    assert sorted(os.listdir(root)) == ["cs", "hi", "manifest.json"]


def test_what_a_killed_build_left_is_cleared(tmp_path):
    left = tmp_path / "corpus/.building-x"
    left.mkdir(parents=True)
    (left / "lines").write_text("half")
    build(tmp_path, NEW)
    assert not left.exists()


def test_one_builds_at_a_time(tmp_path):
    build(tmp_path, OLD)
    with replacing.only_writer(tmp_path / "corpus"), pytest.raises(UserError, match="Another pro"):
        build(tmp_path, NEW)
    folder = os.open(tmp_path / "corpus", os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(folder)


@pytest.mark.parametrize("where", ["hi/train.jsonl", "cs/mine.txt", "licences/mine.txt"])
def test_what_no_corpus_made_is_not_replaced(tmp_path, where):
    file = tmp_path / "corpus" / where
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(UserError, match=f"would replace .*{where}"):
        build(tmp_path, NEW)
    assert file.read_text() == "mine"


def test_a_file_beside_ours_is_not_replaced(tmp_path):
    build(tmp_path, OLD)
    (tmp_path / "corpus/sw/mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"would replace .*sw/mine.txt"):
        build(tmp_path, NEW)
    assert content(tmp_path) == {"hi": ["old"], "sw": ["old too"]}


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    build(tmp_path, OLD)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(corpus, "write", full)
    with pytest.raises(UserError, match=r"corpus cannot be written \(No space left on device\)"):
        build(tmp_path, NEW)
    assert content(tmp_path) == {"hi": ["old"], "sw": ["old too"]}
