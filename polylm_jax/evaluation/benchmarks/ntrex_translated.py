"""NTREX-128: news of 2019 translated from English (Federmann et al., 2022), by chrF++."""

import functools
import os

from polylm_jax.data.languages import NON_ENGLISH
from polylm_jax.errors import UserError
from polylm_jax.evaluation import prompts
from polylm_jax.evaluation.benchmarks.wmt20 import notes, translated
from polylm_jax.evaluation.items import Prompt
from polylm_jax.evaluation.tasks import Row, Task, both, lines
from polylm_jax.files import opened

ORIGIN = (
    "take newstest2019-src.eng.txt as ntrex/en.txt and newstest2019-ref.LANGUAGE.txt as "
    "ntrex/CODE.txt of github.com/MicrosoftTranslator/NTREX."
)


def _read(file: str, content: bytes, code: str) -> list[Row]:
    """Lines of a language, each with the English one that has its number."""
    english = f"{os.path.dirname(file)}/en.txt"
    files, path = opened(english)
    if not files.isfile(path):
        raise UserError(f"{file} is there, but {english} is not: {ORIGIN}")
    both_sides = [lines(name, text, code) for name, text in
                  ((file, content), (english, files.cat_file(path)))]  # fmt: skip
    if len(set(map(len, both_sides))) > 1:
        raise UserError(f"{file} and {english} have not as many lines; take both anew: {ORIGIN}")
    return [
        {"text": row["text"], "english": other["text"]}
        for row, other in zip(*both_sides, strict=True)
    ]


def _items(into: bool, rows: list[Row], language: str, protocol: str) -> list[Prompt]:
    sides = ("text", "english") if into else ("english", "text")
    pair = f"{language}-en" if into else f"en-{language}"
    given = [{"src": row[sides[0]], "ref": row[sides[1]]} for row in rows]
    return translated(given, pair, protocol)


def _task(into: bool) -> Task:
    return Task(
        name="ntrex_into_en" if into else "ntrex_out_of_en",
        kind="generated",
        languages=NON_ENGLISH,
        key="ntrex_{}-en" if into else "ntrex_en-{}",
        files=both("ntrex/{}.txt"),
        origin=ORIGIN,
        form={"text": str, "english": str},
        items=functools.partial(_items, into),
        read=_read,
        translated=True,
        notes=notes,
        measure=prompts.translation("chrf++", "en" if into else ""),
        shots={"paper": 1},
    )


TASKS = [_task(into=False), _task(into=True)]
