"""Text on the hub and in buckets: read as far as it is wanted, and told where it cannot be."""

import sys
from pathlib import Path

import pytest
from fsspec import AbstractFileSystem
from fsspec.registry import _registry as REGISTRY
from fsspec.spec import AbstractBufferedFile

from polylm_jax.__main__ import main
from polylm_jax.data import corpus, shards
from polylm_jax.data.clean import documents, inputs, products
from polylm_jax.data.clean.documents import Document
from polylm_jax.errors import UserError
from polylm_jax.files import existing
from tests.conftest import gin_flags
from tests.data.sentences import SENTENCES

DATASET = "hf://datasets/me/wiki"
GROUP, GROUPS = 300, 8  # rows of a group, and how many


def dry_run(path, language="", **more):
    settings = {"clean.inputs": {path: language}} | more
    return main(["clean", "--dry_run", *gin_flags(settings)])


class File(AbstractBufferedFile):
    def _fetch_range(self, start, end):
        self.fs.ask()
        Hub.fetched.append(end - start)
        return (Hub.folder / self.path).read_bytes()[start:end]


class Hub(AbstractFileSystem):
    """What huggingface_hub gives fsspec, of a folder here, with a note of what is fetched."""

    protocol = "hf"
    cachable = False
    folder: Path
    fetched: list[int]
    down: Exception | None = None

    def ask(self):
        if self.down:
            raise self.down

    def info(self, path, **_):
        self.ask()
        path = self._strip_protocol(path)
        place = Hub.folder / path
        if not place.exists():
            raise FileNotFoundError(path)
        kind = "directory" if place.is_dir() else "file"
        return {"name": path, "size": place.stat().st_size, "type": kind}

    def ls(self, path, detail=True, **_):
        self.ask()
        path = self._strip_protocol(path)
        found = sorted((Hub.folder / path).iterdir())
        return [
            self.info(f"{path}/{one.name}") if detail else f"{path}/{one.name}" for one in found
        ]

    def _open(self, path, mode="rb", block_size=None, **_):
        return File(self, path, mode, block_size=2**14)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one Parquet file of German."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    Hub.folder, Hub.fetched = tmp_path / "hub", []
    monkeypatch.setitem(REGISTRY, "hf", Hub)
    file = Hub.folder / "datasets/me/wiki/de/train-0.parquet"
    file.parent.mkdir(parents=True)
    texts = [f"{n} {n * 7919 % 10007} {' '.join(SENTENCES['de'])}" for n in range(GROUP * GROUPS)]
    parquet.write_table(
        pyarrow.table({"text": texts}), file, row_group_size=GROUP, compression="none",
        use_dictionary=False,
    )  # fmt: skip
    return file


@pytest.mark.parametrize("path", ["de", "de/*.parquet", "**/*.parquet", "de/train-0.parquet"])
def test_a_table_on_the_hub_is_read_as_far_as_it_is_wanted(hub, path):
    [shard] = inputs.shards({f"{DATASET}/{path}": "de"})
    assert (shard.kind, shard.bytes) == ("parquet", hub.stat().st_size)
    assert shard.files[0].place == f"{DATASET}/de/train-0.parquet"
    assert not Hub.fetched  # to say what there is takes none of it
    first = next(documents.read(shard))
    assert isinstance(first, Document)
    assert first.text.startswith("0 0 ")
    assert sum(Hub.fetched) < shard.bytes / (GROUPS / 2)
    assert sum(isinstance(one, Document) for one in documents.read(shard)) == GROUP * GROUPS


def test_a_large_table_is_shared_by_what_its_end_says(hub, monkeypatch):
    monkeypatch.setattr(inputs.parts, "PART", hub.stat().st_size // 4)
    found = inputs.shards({DATASET: "de"})
    assert sum(Hub.fetched) < hub.stat().st_size / 4
    ends = [(shard.files[0].begin, shard.files[0].end) for shard in found]
    assert [begin for begin, _ in ends] == [0, *(end for _, end in ends[:-1])]
    assert ends[-1][1] in (None, GROUPS)
    ids = {one.id for shard in found for one in documents.read(shard)}
    assert len(ids) == GROUP * GROUPS


def test_the_verb_takes_what_is_on_the_hub(hub, tmp_path, capsys):
    assert dry_run(f"{DATASET}/*/*.parquet", "de", **{"clean.output": tmp_path / "o"}) == 0
    text = 2.5 * hub.stat().st_size / 1e9  # of a table
    assert f"1 shards, about {text:.3g} GB of text" in capsys.readouterr().out


MEND = "cannot be reached (Name or service not known); mend its name, or see to the network and"


@pytest.mark.parametrize("path", ["", "/de", "/de/*.parquet", "/**"])
def test_a_host_that_does_not_answer_is_one_sentence(hub, path, monkeypatch, capsys):
    monkeypatch.setattr(Hub, "down", ConnectionError("Name or service not known"))
    for language in ("", "de"):
        assert dry_run(f"{DATASET}{path}", language) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"polylm clean: {DATASET}{path} {MEND}")
        assert said.count("\n") == 1


def test_a_host_that_answers_no_more_damages_nothing(hub, monkeypatch):
    """What it would have given is not taken for broken, nor for missing."""
    [shard] = inputs.shards({DATASET: "de"})
    reading = documents.read(shard)
    next(reading)
    monkeypatch.setattr(Hub, "down", ConnectionError("Name or service not known"))
    with pytest.raises(UserError, match=r"wiki/de/train-0.parquet cannot be reached \(Name or"):
        list(reading)
    with pytest.raises(UserError, match=r"train-0.parquet cannot be reached"):
        next(documents.read(shard))
    for ask in (
        lambda: corpus.manifest(DATASET),
        lambda: existing(DATASET, "--run"),
        lambda: products.exists(f"{DATASET}/manifest.json"),
    ):
        with pytest.raises(UserError, match=r"me/wiki\S* cannot be reached \(Name or service"):
            ask()
    text = shards.Text(f"{DATASET}/de/train.jsonl", 5)
    with (
        pytest.raises(UserError, match=r"train.jsonl cannot be reached"),
        shards.lines_of(text) as lines,
    ):
        lines.read()


@pytest.mark.parametrize(
    ("path", "package"), [(DATASET, "huggingface_hub"), ("gs://b/a", "gcsfs"), ("s3://b/a", "s3fs")]
)
def test_a_missing_package_is_named(path, package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(REGISTRY, path.partition(":")[0], raising=False)
    assert dry_run(f"{path}/*.parquet") == 1
    said = capsys.readouterr().err
    assert (
        said
        == f"polylm clean: {path}/*.parquet needs {package} to be opened: pip install {package}.\n"
    )


def test_the_hubs_own_package_where_no_host_answers(monkeypatch, capsys):
    """Its errors are no OSError; nobody listens at port 9."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert dry_run(f"{DATASET}/de/*.parquet") == 1
    said = capsys.readouterr().err
    assert said.startswith(f"polylm clean: {DATASET}/de/*.parquet cannot be reached ([Errno 111]")
    assert said.count("\n") == 1
