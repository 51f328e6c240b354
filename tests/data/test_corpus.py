"""The corpus: a user's folder, the split, packages and their formats, and what goes wrong."""

import io
import json
import struct
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from polylm_jax.data import corpus, extract, packages
from polylm_jax.data.corpus import Corpus
from polylm_jax.data.languages import LANGUAGES, NON_ENGLISH
from polylm_jax.errors import UserError
from tests.data.sentences import SENTENCES


def quiet(line: str) -> None:
    """Progress that nobody reads."""


def build(path: Path, text: Path | str = "", valid_share: float = 0.1, large: bool = False) -> dict:
    return corpus.build(Corpus(str(path), str(text), valid_share), large, progress=quiet)


def write_jsonl(file: Path, texts: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    file.write_text("".join(lines), "utf-8")


def every_file(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A user's folder with text in all languages, and English paired with each."""
    folder = tmp_path / "texts"
    for code, sentences in SENTENCES.items():
        write_jsonl(folder / code / "a.jsonl", sentences)
    for code in NON_ENGLISH:
        pairs = zip(SENTENCES["en"], SENTENCES[code], strict=True)
        write_jsonl(folder / f"en-{code}.jsonl", [f"{english}\n{own}\n" for english, own in pairs])
    return folder


class TestUsersFolder:
    def test_documents_come_back_unchanged_in_all_languages(self, tmp_path, texts):
        build(tmp_path / "corpus", texts)
        path = str(tmp_path / "corpus")
        assert corpus.sources(path) == [*LANGUAGES, *(f"en-{code}" for code in NON_ENGLISH)]
        for code, sentences in SENTENCES.items():
            train = list(corpus.documents(path, code, "train"))
            valid = list(corpus.documents(path, code, "valid"))
            assert sorted(train + valid) == sorted(sentences)
            assert len(valid) >= 2

    def test_manifest_counts_what_is_there(self, tmp_path, texts):
        manifest = build(tmp_path / "corpus", texts)
        path = str(tmp_path / "corpus")
        assert corpus.manifest(path) == manifest
        assert manifest["packages"] == []
        assert manifest["valid_share"] == 0.1
        for split in corpus.SPLITS:
            found = list(corpus.documents(path, "th", split))
            size = sum(len(text.encode()) for text in found)
            assert manifest["sources"]["th"][split] == {"documents": len(found), "bytes": size}

    def test_each_document_names_its_file(self, tmp_path, texts):
        build(tmp_path / "corpus", texts)
        first = (tmp_path / "corpus/pl/train.jsonl").read_text("utf-8").split("\n")[0]
        assert json.loads(first)["from"] == "pl/a.jsonl"

    def test_building_again_gives_the_same_bytes_and_drops_old_sources(self, tmp_path, texts):
        build(tmp_path / "corpus", texts)
        first = every_file(tmp_path / "corpus")
        build(tmp_path / "corpus", texts)
        assert every_file(tmp_path / "corpus") == first
        (texts / "en-ko.jsonl").unlink()
        build(tmp_path / "corpus", texts)
        assert not (tmp_path / "corpus/en-ko").exists()
        assert "en-ko" not in corpus.sources(str(tmp_path / "corpus"))

    def test_a_folder_that_is_no_language_is_named_and_passed_over(self, tmp_path, texts):
        (texts / "klingon").mkdir()
        said: list[str] = []
        corpus.build(Corpus(str(tmp_path / "corpus"), str(texts)), False, said.append)
        assert any("klingon" in line for line in said)


class TestGrouping:
    def test_lines_are_joined_in_order_to_about_a_kilobyte(self):
        lines = [(f"line {number} of the catalogue",) for number in range(200)]
        found = list(corpus.grouped(lines, both_ways=False))
        assert "\n".join(found).split("\n") == [line for (line,) in lines]
        assert all(1190 <= len(text) < 1300 for text in found[:-1])

    def test_pairs_go_both_ways_but_one_way_within_a_document(self):
        pairs = [(f"English {number}", f"deutsch {number}") for number in range(2000)]
        found = list(corpus.grouped(pairs, both_ways=True))
        firsts = [{pair.split(" ")[0] for pair in text.split("\n\n")} for text in found]
        assert all(len(first) == 1 for first in firsts)
        assert {"English"} in firsts
        assert {"deutsch"} in firsts


def catalogue(strings: dict[str, str], order: str = "<") -> bytes:
    """A gettext .mo file."""
    header, ids, texts, data = 28, [], [], b""
    start = header + 16 * len(strings)
    for table, values in ((ids, strings.keys()), (texts, strings.values())):
        for value in values:
            table.append((len(value.encode()), start + len(data)))
            data += value.encode() + b"\0"
    count = len(strings)
    head = struct.pack(f"{order}7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, 0)
    return head + b"".join(struct.pack(f"{order}2I", *row) for row in ids + texts) + data


class TestExtraction:
    @pytest.mark.parametrize("order", ["<", ">"])
    def test_catalogue(self, order):
        content = catalogue(
            {
                "": "Content-Type: text/plain; charset=UTF-8\n",
                "menu\x04Open the file": "Die Datei öffnen",
                "one apple\0many apples": "ein Apfel\0viele Äpfel",
                "Untranslated words here": "Untranslated words here",
                "Half done": "Half done.Half done.",
                "%(count)s of %(all)s": "%(count)s von %(all)s",
                "Press %s to stop": "Zum Anhalten %s drücken",
                "~Edit": "~Bearbeiten",
                "<b>Bold words</b>": "<b>Fette Wörter</b>",
                "N j, Y": "j. F Y",
            },
            order,
        )
        assert extract.pairs_of_catalogue(content) == [
            ("Open the file", "Die Datei öffnen"),
            ("one apple", "ein Apfel"),
            ("many apples", "viele Äpfel"),
            ("Press %s to stop", "Zum Anhalten %s drücken"),
        ]

    def test_every_sentence_of_ours_is_prose(self):
        assert all(extract.is_prose(text) for texts in SENTENCES.values() for text in texts)

    @pytest.mark.parametrize(
        "text", ["", " ", "—", "%s", "%(name)s: %(value)s", "{a} {b}", "3 × 4"]
    )
    def test_what_is_not_prose(self, text):
        assert not extract.is_prose(text)

    def test_dialogues(self):
        text = (
            "categories:\n- greetings\nconversations:\n"
            "- - Hallo\n  - Guten Tag,\n    wie geht es?\n"
            "- - \"Was: ist das?\"\n  - 'Das ist''s.'\n"
            "- - Ein Programm?\n  - |\n    x = [1, 2]\n    - 3\n"
            "- - Ende\n  - Ja"
        )
        assert extract.dialogues_of_yaml(text) == [
            ("Hallo", "Guten Tag, wie geht es?"),
            ("Was: ist das?", "Das ist's."),
            ("Ende", "Ja"),
        ]

    def test_manual(self):
        text = (
            "=========\nOverview\n=========\n\n.. module:: things\n   :synopsis: Things.\n\n"
            "Set :setting:`DEBUG` to ``True``, see :doc:`the guide\n</topics/guide>` and `more\n"
            "<https://example.org>`_::\n\n    DEBUG = True\n\n.. _target:\n\n"
            "* A *first* item\n  goes on.\n* A **second** item.\n\n"
            "====  ====\nA     B\n====  ====\n"
        )
        assert extract.paragraphs_of_rest(text) == [
            "Overview",
            "Set DEBUG to True, see the guide and more:",
            "A first item goes on.",
            "A second item.",
        ]

    def test_help_page(self):
        html = (
            '<p id="bm_module">Menu words</p><h1 id="hd_1"><a name="x"></a>Über\n Dialoge</h1>'
            '<p id="par_1" class="a">Wählen Sie <span>Datei&nbsp;– Neu</span>&hellip;</p>'
            '<p>No id here</p><p id="par_2">42</p>'
            '<p id="par_3">Siehe auch [text/scalc/01/func_average.xhp#average not found]., SUM</p>'
        )
        assert extract.paragraphs_of_help(html) == {
            "hd_1": "Über Dialoge",
            "par_1": "Wählen Sie Datei\xa0– Neu…",
        }


GERMAN = {
    "Save the whole page": "Die ganze Seite speichern",
    "Close": "Schließen",
    "Good morning to everyone": "Guten Morgen allerseits",
}


def fake_download(command: list[str], cwd: Path, **_) -> subprocess.CompletedProcess:
    """Puts tiny packages where pip would."""
    for requirement in (word for word in command if "==" in word):
        name, version = requirement.split("==")
        if name == "Django":
            with tarfile.open(cwd / f"django-{version}.tar.gz", "w:gz") as tar:
                for path, content in {
                    "LICENSE": b"Be kind.",
                    "docs/intro.txt": b"The manual says hello.\n\n    x = 1\n",
                    "docs/releases/1.txt": b"Release notes are left out.\n",
                    "django/conf/locale/de/LC_MESSAGES/django.mo": catalogue(GERMAN),
                    "django/conf/locale/es_AR/LC_MESSAGES/django.mo": catalogue(GERMAN),
                }.items():
                    entry = tarfile.TarInfo(f"django-{version}/{path}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
            continue
        with zipfile.ZipFile(
            cwd / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", "w"
        ) as z:
            z.writestr(f"{name}-{version}.dist-info/METADATA", f"Name: {name}\n")
            if name == "chatterbot-corpus":
                z.writestr(
                    "chatterbot_corpus/data/thai/a.yml", "conversations:\n- - สวัสดี\n  - ดีจ้า\n"
                )
    return subprocess.CompletedProcess(command, 0, "", "")


def failing_download(command: list[str], **_) -> subprocess.CompletedProcess:
    said = "WARNING: Retrying\nERROR: No matching distribution found for Django==5.2.19\n"
    return subprocess.CompletedProcess(command, 1, "", said)


class TestPackages:
    def test_small_corpus(self, tmp_path, monkeypatch):
        monkeypatch.setattr(packages.subprocess, "run", fake_download)
        manifest = build(tmp_path)
        assert corpus.sources(str(tmp_path)) == ["en", "de", "th", "en-de"]
        assert list(corpus.documents(str(tmp_path), "de", "train")) == ["\n".join(GERMAN.values())]
        assert list(corpus.documents(str(tmp_path), "th", "train")) == ["สวัสดี\nดีจ้า"]
        (english,) = corpus.documents(str(tmp_path), "en", "train")
        assert english == "\n".join([*GERMAN, "The manual says hello."])
        (both,) = corpus.documents(str(tmp_path), "en-de", "train")
        pairs = [set(pair.split("\n")) for pair in both.split("\n\n")]
        assert pairs == [set(pair) for pair in GERMAN.items() if pair[0] != "Close"]
        assert (tmp_path / "licences/Django/LICENSE").read_bytes() == b"Be kind."
        assert (tmp_path / "licences/wagtail/METADATA").is_file()
        assert manifest["packages"][0] == {
            "name": "Django",
            "version": "5.2.19",
            "licence": "BSD-3-Clause",
            "file": "django-5.2.19.tar.gz",
        }

    def test_second_build_needs_no_network_and_gives_the_same_bytes(self, tmp_path, monkeypatch):
        monkeypatch.setattr(packages.subprocess, "run", fake_download)
        build(tmp_path)
        first = every_file(tmp_path)
        monkeypatch.setattr(packages.subprocess, "run", failing_download)
        build(tmp_path)
        assert every_file(tmp_path) == first

    def test_no_network(self, tmp_path, monkeypatch):
        monkeypatch.setattr(packages.subprocess, "run", failing_download)
        expected = (
            r"pip could not fetch Django and 18 more \(No matching.*--gin\.corpus\.text=FOLDER"
        )
        with pytest.raises(UserError, match=expected):
            build(tmp_path)
        assert every_file(tmp_path) == {}

    def test_a_damaged_download_is_named_and_an_older_corpus_stays(self, tmp_path, monkeypatch):
        monkeypatch.setattr(packages.subprocess, "run", fake_download)
        build(tmp_path)
        before = every_file(tmp_path)
        damaged = next(tmp_path.glob("packages/wagtail*"))
        damaged.write_bytes(b"half a file")
        with pytest.raises(UserError, match=r"wagtail.* is damaged .*: delete it and try again"):
            build(tmp_path)
        assert every_file(tmp_path) == {**before, f"packages/{damaged.name}": b"half a file"}

    def test_manuals_are_aligned_by_page_and_paragraph(self, monkeypatch):
        english = {
            "par_1": "Click the new button.",
            "par_2": "Not yet translated here.",
            "hd_3": "Dialogs",
        }
        german = {**english, "par_1": "Klicken Sie auf Neu.", "hd_3": "Dialoge"}
        pages = {
            f"usr/share/libreoffice/help/{folder}/text/a/b.html": "".join(
                f'<p id="{name}">{text}</p>' for name, text in texts.items()
            ).encode()
            for folder, texts in {"en-US": english, "de": german}.items()
        }
        monkeypatch.setattr(packages, "_members", lambda file, wanted: pages)
        assert list(packages.pieces([Path("both.deb")])) == [
            (Path("both.deb"), "en", [(text,) for text in english.values()]),
            (Path("both.deb"), "de", [("Klicken Sie auf Neu.",), ("Dialoge",)]),
            (Path("both.deb"), "en-de", [("Click the new button.", "Klicken Sie auf Neu.")]),
        ]

    def test_large_without_apt(self, tmp_path, monkeypatch):
        monkeypatch.setattr(packages.shutil, "which", lambda name: None)
        with pytest.raises(UserError, match="needs apt-get and dpkg, which only Debian"):
            build(tmp_path, large=True)

    def test_every_language_but_thai_and_english_has_a_language_pack(self):
        names = {package.name for package in packages.SMALL}
        packed = {name.split("-")[3] for name in names if name.startswith("jupyterlab")}
        assert packed == set(LANGUAGES) - {"en", "th"}


class TestErrors:
    """Each is one sentence, and leaves nothing behind."""

    def expect(self, message: str, tmp_path: Path, texts: Path, **options) -> None:
        path = tmp_path / "corpus"
        with pytest.raises(UserError, match=message) as caught:
            build(path, texts, **options)
        assert "\n" not in str(caught.value)
        assert not path.exists() or every_file(path) == {}

    def test_no_corpus(self, tmp_path):
        expected = rf"no corpus at {tmp_path}; run polylm corpus --small"
        with pytest.raises(UserError, match=expected):
            corpus.sources(str(tmp_path))
        with pytest.raises(UserError, match=expected):
            next(corpus.documents(str(tmp_path), "en", "train"))

    def test_unknown_source(self, tmp_path, texts):
        build(tmp_path / "corpus", texts)
        with pytest.raises(UserError, match="has no source 'sv', only en, zh"):
            next(corpus.documents(str(tmp_path / "corpus"), "sv", "train"))

    def test_not_utf8(self, tmp_path, texts):
        (texts / "fr.txt").write_bytes("Été\nvoilà\n".encode() + "Noël".encode("latin-1"))
        self.expect(r"fr\.txt:3 is not UTF-8 at its byte 3: save", tmp_path, texts)

    def test_not_utf8_in_jsonl(self, tmp_path, texts):
        good = '{"text": "Été"}\n'
        (texts / "fr.jsonl").write_bytes(good.encode() + '{"text": "Noël"}'.encode("latin-1"))
        self.expect(r"fr\.jsonl:2 is not UTF-8 at its byte 13: save", tmp_path, texts)

    @pytest.mark.parametrize(
        "line", ["{", '{"txt": "a"}', '{"text": 5}', '"a"', "[1]", '{"text": "\\ud800"}']
    )
    def test_not_such_json(self, line, tmp_path, texts):
        (texts / "fr.jsonl").write_text(f'{{"text": "Été"}}\n\n{line}\n', "utf-8")
        self.expect(r"fr\.jsonl:3 is not a JSON object with a string", tmp_path, texts)

    def test_empty_language(self, tmp_path, texts):
        (texts / "ko/a.jsonl").write_text('{"text": " "}\n')
        self.expect(r"texts/ko has no text: put some in", tmp_path, texts)
        (texts / "ko/a.jsonl").unlink()
        self.expect(r"texts/ko has no text: put some in", tmp_path, texts)

    def test_no_folder(self, tmp_path):
        self.expect(r"corpus\.text=.*/nowhere is no folder", tmp_path, tmp_path / "nowhere")

    def test_no_languages(self, tmp_path):
        (tmp_path / "texts/klingon").mkdir(parents=True)
        self.expect(r"texts has no languages: put text in xx/\*\.txt", tmp_path, tmp_path / "texts")

    def test_share_out_of_range(self, tmp_path, texts):
        self.expect(
            "corpus.valid_share = 0.9; it must lie between 0 and 0.5",
            tmp_path,
            texts,
            valid_share=0.9,
        )

    def test_large_and_text(self, tmp_path, texts):
        self.expect("leave out either it or --large", tmp_path, texts, large=True)

    def test_path_is_a_file(self, tmp_path, texts):
        (tmp_path / "corpus").write_text("mine")
        with pytest.raises(UserError, match="cannot be made a folder"):
            build(tmp_path / "corpus", texts)

    def test_a_users_text_is_never_replaced(self, tmp_path, texts):
        before = every_file(texts)
        for text in (texts, tmp_path / "other"):
            with pytest.raises(UserError, match="has text that a corpus there would replace"):
                build(texts, text)
        assert every_file(texts) == before
