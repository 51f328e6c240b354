"""What the pages say is so: links lead somewhere, commands run or are taken by their verb."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from polylm_jax.__main__ import main
from polylm_jax.verbs import module_of

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NOT_RUN = dict(
    line.split(": ", 1)
    for line in Path(__file__).with_name("not_run.txt").read_text("utf-8").splitlines()
    if line and not line.startswith("#")
)


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of each fenced block of a page."""
    yield from re.findall(r"(?ms)^```([^\n]*)\n(.*?)^```$", page.read_text("utf-8"))


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command in a page's shell blocks, its variables filled in."""
    for language, text in blocks(page):
        if language not in ("sh", "bash"):
            continue
        given: dict[str, str] = {}
        for line in text.replace("\\\n", " ").replace("&&\n", "&& ").splitlines():
            for name, value in given.items():
                line = line.replace(f"${name}", value)
            line = re.sub(r"(^|\s)#.*", "", line).strip()
            assigned = re.fullmatch(r"([A-Z]+)=(.+)", line)
            if assigned:
                given[assigned[1]] = "".join(shlex.split(assigned[2]))
                continue
            for command in re.split(r"&&|;|\|", line):
                words = shlex.split(command)
                while words and re.match(r"[A-Z_]+=", words[0]):
                    words = words[1:]  # settings of the environment
                if words:
                    yield words


def name_of(words: list[str]) -> str:
    """What a command is listed under: its program, and of polylm and make the verb, too."""
    return " ".join(words[: 2 if words[0] in ("polylm", "make") else 1])


ALL = [(page, words) for page in PAGES for words in commands(page) if re.match(r"[\w/.]", words[0])]
OURS = [(page, words) for page, words in ALL if words[0] == "polylm" and len(words) > 1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"(?ms)^```.*?^```$|`[^`\n]*`", "", page.read_text("utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        file, _, heading = target.partition("#")
        there = page.parent / file if file else page
        assert there.exists(), f"{page.name}: {target}"
        if heading:
            heads = re.findall(r"(?m)^#+ (.+)$", there.read_text("utf-8"))
            anchors = [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads]
            assert heading in anchors, f"{page.name}: {target}"


@pytest.mark.parametrize(("page", "words"), OURS, ids=[" ".join(words)[:80] for _, words in OURS])
def test_a_command_is_run_or_taken_by_its_verb(page, words, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gin_configs").symlink_to(ROOT / "gin_configs")
    for folder in ["runs", *re.findall(r"--(?:run|against)=(\S+)", " ".join(words))]:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    if name_of(words) in NOT_RUN:
        monkeypatch.setattr(module_of(words[1]), "run", lambda given: 0)
    arguments = [word for word in words[1:] if "…" not in word]
    assert main(arguments) == 0, f"{page.name}: {shlex.join(words)}: {capfd.readouterr().err}"


def test_every_other_command_is_one_of_ours_or_is_listed():
    targets = re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text())
    for page, words in ALL:
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= set(targets), page
        elif words[0] != "polylm":
            known = (ROOT / words[0]).is_file() or name_of(words) in NOT_RUN
            assert known, f"{page.name}: {shlex.join(words)}"


def test_what_is_listed_stands_in_a_page():
    assert set(NOT_RUN) <= {name_of(words) for _, words in ALL}
