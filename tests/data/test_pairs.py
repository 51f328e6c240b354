"""Questions and answers out of made-up packages: what they are, and that the corpus lacks them."""

import json
import subprocess
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from polylm_jax import config
from polylm_jax.__main__ import main
from polylm_jax.data import corpus, packages, pairs, tokenizer
from polylm_jax.data.corpus import Corpus
from polylm_jax.data.rows import open_store
from polylm_jax.errors import UserError
from tests.conftest import gin_flags
from tests.data.test_corpus import catalogue

THINGS = ("page", "folder", "image", "user", "comment", "link", "table", "report", "menu", "form")
DOINGS = {
    "Delete the {} now": ("Jetzt löschen: {}", "Supprimer maintenant : {}"),
    "Add another {} here": ("Hier noch hinzufügen: {}", "Ajouter ici encore : {}"),
    "The {} was not found.": ("Nicht gefunden wurde: {}", "Introuvable pour le moment : {}"),
    "Choose a {} to edit": ("Zum Bearbeiten wählen: {}", "Choisir pour modifier : {}"),
    "Close": ("Schließen", "Fermer"),
}
MESSAGES = [
    (doing.format(thing), (german.format(thing), french.format(thing)))
    for thing in THINGS
    for doing, (german, french) in DOINGS.items()
]
DIALOGUES = [
    (f"Ask {thing} of me?", f"I know the {thing}.", f"Then the {thing} is good.")
    for thing in THINGS
]
GERMAN, FRENCH = ({english: both[n] for english, both in MESSAGES} for n in (0, 1))
# what the manual says holds what some messages say, in other letters and signs
MANUAL = [f"Please note: delete, the {thing} – now or never." for thing in THINGS]


def fake_download(command, cwd, **_):
    """Puts packages where pip would: two catalogues, a manual and dialogues."""
    for requirement in (word for word in command if "==" in word):
        name, version = requirement.split("==")
        files = {"LICENSE": b"Be kind."}
        if name == "Django":
            locale = "django/conf/locale/{}/LC_MESSAGES/django.mo"
            files |= {
                "docs/intro.txt": "\n\n".join(MANUAL).encode(),
                locale.format("de"): catalogue(GERMAN),
                locale.format("fr"): catalogue(FRENCH),
            }
            with tarfile.open(cwd / f"django-{version}.tar.gz", "w:gz") as tar:
                for path, content in files.items():
                    entry = tarfile.TarInfo(f"django-{version}/{path}")
                    entry.size = len(content)
                    tar.addfile(entry, BytesIO(content))
            continue
        wheel = cwd / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as file:
            file.writestr(f"{name}-{version}.dist-info/METADATA", f"Name: {name}\n")
            if name == "chatterbot-corpus":
                said = "".join(f"- - {a}\n  - {b}\n  - {c}\n" for a, b, c in DIALOGUES)
                file.writestr("chatterbot_corpus/data/english/a.yml", f"conversations:\n{said}")
    return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Function (share of pairs) -> manifest of the corpus in tmp_path, made of the packages."""
    monkeypatch.setattr(packages.subprocess, "run", fake_download)
    return lambda share: corpus.build(
        Corpus(str(tmp_path), pairs=share), large=False, progress=lambda line: None
    )


def pairs_in(folder: Path) -> dict[str, list[dict]]:
    files = sorted((folder / "pairs").glob("*.jsonl"))
    return {
        file.stem: [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        for file in files
    }


def lines_in(folder: Path) -> dict[str, set[str]]:
    """The lines of all documents of each source."""
    return {
        source: {
            line
            for split in corpus.SPLITS
            for text in corpus.documents(str(folder), source, split)
            for line in text.splitlines()
            if line
        }
        for source in corpus.sources(str(folder))
    }


def told(row: dict) -> tuple[str, str, str]:
    """(language, English, translation) of a translation, whichever way it goes."""
    kind, _, text = row["prompt"].partition(": ")
    into = kind.removeprefix("Translate into ")
    if into == "English":
        language = (
            "de" if row["completion"] in GERMAN and GERMAN[row["completion"]] == text else "fr"
        )
        return language, row["completion"], text
    return {"German": "de", "French": "fr"}[into], text, row["completion"]


def plain(text: str) -> str:
    """Words alone, in small letters."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


def test_pairs_are_aligned_messages_in_all_languages_and_dialogues(build, tmp_path):
    manifest = build(0.4)
    rows = pairs_in(tmp_path)
    assert manifest["pairs"] == {name: len(rows[name]) for name in ("en", "de", "fr")}
    every = [row for some in rows.values() for row in some]
    talks = [row for row in every if row["from"] == "chatterbot-corpus"]
    found = sorted(told(row) for row in every if row["from"] == "Django")
    chosen = {english for _, english, _ in found}
    sentences = {english for english, _ in MESSAGES if english != "Close"}
    assert chosen < sentences
    assert len(chosen) == pytest.approx(0.4 * len(sentences), abs=8)
    both = [("de", GERMAN), ("fr", FRENCH)]
    assert found == sorted((name, one, table[one]) for name, table in both for one in chosen)
    assert {(row["prompt"], row["completion"]) for row in talks} < {(a, b) for a, b, _ in DIALOGUES}
    assert 0 < len(talks) < len(DIALOGUES)
    assert {told(row)[0] for row in rows["en"] if row not in talks} == {"de", "fr"}
    groups = {row["group"]: told(row)[1] for row in every if row not in talks}
    assert sorted(groups.values()) == sorted(chosen)


def test_the_corpus_says_nothing_of_the_pairs_and_all_else(build, tmp_path):
    build(0)
    whole = lines_in(tmp_path)
    assert not (tmp_path / "pairs").exists()
    build(0.4)
    left = lines_in(tmp_path)
    rows = [row for some in pairs_in(tmp_path).values() for row in some]
    said = {plain(text) for row in rows if row["from"] == "Django" for text in told(row)[1:]}
    dialogues = [d for d in DIALOGUES if d[0] in {row["prompt"] for row in rows}]
    said |= {plain(text) for dialogue in dialogues for text in dialogue}

    def gone(line: str) -> bool:
        return any(text == plain(line) or text in plain(line) for text in said)

    for source, lines in whole.items():
        taken = lines - left.get(source, set())
        assert {line for line in lines if gone(line)} <= taken, source
        # a whole piece goes, of which the other lines are the rest of a dialogue or a pair
        partners = {text for d in dialogues for text in d} if source == "en" else set()
        assert all(gone(line) or line in partners or "-" in source for line in taken), source
    assert any(line in left["en"] for line in MANUAL)
    assert not all(line in left["en"] for line in MANUAL)
    assert "Close" in left["en"]
    assert "Fermer" in left["fr"]


def test_no_row_to_pre_train_on_holds_a_pair(build, tmp_path, tiny):
    build(0.4)
    paths = {"corpus.path": tmp_path, "corpus.text": "", "rows.path": tmp_path / "rows"}
    assert main(["rows", *gin_flags(tiny | paths)]) == 0
    store, vocabulary = (
        open_store(str(tmp_path / "rows")),
        tokenizer.load(str(tiny["tokenizer.path"])),
    )
    read = {
        source: plain(
            "".join(
                b"".join(vocabulary.pieces[i] for row in rows for i in row[:-1]).decode("utf-8")
                for split in corpus.SPLITS
                if len(rows := store.read(source, np.arange(store.rows(source, split)), split))
            )
        )
        for source in store.sources
    }
    assert any(plain(line) in read["en"] for line in MANUAL)
    for row in (row for some in pairs_in(tmp_path).values() for row in some):
        talk = row["from"] == "chatterbot-corpus"
        for text in (row["prompt"], row["completion"]) if talk else told(row)[1:]:
            assert not any(plain(text) in texts for texts in read.values()), text


@pytest.mark.parametrize(
    ("held", "text", "goes"),
    [
        ("Delete the page", "delete   the PAGE!", True),
        ("Delete the page", "Do not delete the page yet.", True),
        ("Delete the page", "Delete a page", False),
        ("Good.", "good", True),
        ("Good.", "Good morning to you", False),
        ("保存并继续", "请保存并继续编辑", True),
        ("…", "什么", False),
    ],
)
def test_a_text_goes_with_what_it_says_whatever_its_signs(held, text, goes):
    chosen = {"en": {(held, "An answer that nothing else gives."): "x"}}
    _, left = pairs.held_back({"de": {(text,): "y"}, **chosen}, 1.0)
    assert (left == {}) is goes
    assert goes or left == {"de": {(text,): "y"}}


def test_pairs_go_when_none_are_asked_for_and_a_users_own_are_not_replaced(build, tmp_path):
    build(0.4)
    build(0)
    assert not (tmp_path / "pairs").exists()
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs/mine.jsonl").write_text("mine")
    with pytest.raises(UserError, match="has text that a corpus there would replace"):
        build(0.4)


def test_a_users_text_gives_no_pairs_and_that_is_said(tmp_path, tiny):
    said: list[str] = []
    settings = Corpus(str(tmp_path / "c"), str(tiny["corpus.text"]), pairs=0.1)
    assert corpus.build(settings, False, said.append)["pairs"] == {}
    assert any("corpus.pairs" in line for line in said)
    assert not (tmp_path / "c/pairs").exists()


def test_the_tuned_demo_learns_from_the_demos_pairs():
    config.parse(["gin_configs/runs/demo.gin"], [])
    before, made = {name: config.get(name) for name in config.BLOCKS}, config.get("corpus")
    assert made.pairs > 0
    config.parse(["gin_configs/runs/demo_tune.gin"], [])
    assert config.get("model") == before["model"]
    assert config.get("train").start == config.get("tokenizer").path == before["train"].folder
    data = config.get("tune").data
    assert {Path(file).parent for file in data} == {Path(made.path, "pairs")}
    assert len({Path(file).stem for file in data}) == len(data) == 18
    assert config.get("rows").path != before["rows"].path
