"""What `polylm clean` is to do: what settings and inputs ask for, whether that may be, and the
folders of all that is made, each called by a hash of what decides it.
"""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from polylm_jax.data.clean import deciding as decisions
from polylm_jax.data.clean import fluency, inputs, measuring, pairing, products, thresholds
from polylm_jax.data.clean.engine import Beam
from polylm_jax.data.clean.language import Identification
from polylm_jax.data.clean.products import WORK, Piece, digest, pieces
from polylm_jax.data.clean.settings import Clean
from polylm_jax.data.clean.thresholds import Limits
from polylm_jax.data.languages import languages_of, source_named
from polylm_jax.errors import UserError
from polylm_jax.files import held, opened


@dataclass(frozen=True)
class Job:
    """What is to be done.

    tokenizer: folder of the tokenizer that n-gram models are made of pieces of.
    passed: what of the inputs is passed over, kind: [files, bytes].
    """

    clean: Clean
    language: Identification
    tokenizer: str
    beam: Beam
    pieces: tuple[Piece, ...]
    passed: dict[str, list[int]]

    def folder(self, stage: str, *settings: Any) -> str:
        return f"{self.clean.output}/{WORK}/{stage}-{digest(*settings)}"

    @property
    def inputs(self) -> list[str]:
        return [piece.key for piece in self.pieces]

    @cached_property
    def index(self) -> str:
        """Where the index of the benchmarks is, "" where there are none to look for."""
        if not self.clean.evaluation:
            return ""
        files = []
        for folder in self.clean.evaluation:
            system, root = opened(folder)
            files += [(name, system.ukey(name)) for name in sorted(system.find(root))]
        return self.folder("index", measuring.FORM, files)

    @cached_property
    def models(self) -> str:
        """Where the n-gram models are, "" where there are none."""
        settings = fluency.settings_of(self.clean, self.tokenizer)
        return self.folder("models", settings) if settings else ""

    @cached_property
    def measured(self) -> str:
        settings = measuring.settings_of(
            self.clean, self.language, name_of(self.models), name_of(self.index)
        )
        return self.folder("measured", settings)

    @cached_property
    def clusters(self) -> str:
        return self.folder("duplicates", name_of(self.measured), self.inputs)


def _check_rules(named: Iterable[str], where: str) -> None:
    """UserError where a setting names a rule that there is not."""
    known = {*decisions.ORDERS["rules"], *thresholds.OF_LANGUAGE, *pairing.RULES}
    for name in named:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), 1, 0)[0]
            raise UserError(f'{where} names "{name}", which is no rule; the nearest is "{near}".')


def check_limits(limits: Limits) -> None:
    """UserError where limits are of no rule or language, or let nothing pass."""
    for language, some in limits.items():
        where = f'thresholds.limits["{language}"]'
        if not (languages_of(language) or language == thresholds.EVERY):
            raise UserError(f'{where} is of no language; write its code, or "*" for every one.')
        _check_rules(some, where)
        for name, (least, most) in some.items():
            if least is not None and most is not None and least > most:
                raise UserError(
                    f'{where}["{name}"] = {(least, most)} lets nothing pass; write (least, most).'
                )


def name_of(path: str) -> str:
    """What a product is called, wherever the output is."""
    return path.rpartition("/")[2]


def planned(clean: Clean, language: Identification, tokenizer: str, beam: Beam) -> Job:
    """The job that settings ask for. UserError for inputs that are none, or hold the output,
    and for an output that holds what is not ours."""
    if not clean.inputs:
        raise UserError(
            "clean.inputs is empty; name what to clean in a gin file: "
            'clean.inputs = {"data/web/*.warc.gz": "", "data/wiki/de": "de"}.'
        )
    _check_rules(clean.off, "clean.off")
    for code in clean.languages:
        if source_named(code) != code:
            raise UserError(f'clean.languages has "{code}", which is no language\'s code; mend it.')
    passed: dict[str, list[int]] = {}
    shards = inputs.shards(clean.inputs, clean.key, passed)
    for path in clean.inputs:
        if inputs.holds(path, clean.output) or inputs.holds(clean.output, path):
            raise UserError(
                f"clean.output={clean.output} lies in what is cleaned, or that in it ({path}); "
                "name a folder elsewhere."
            )
    there = products.names(clean.output)
    if there and WORK not in there:
        raise UserError(
            f"{clean.output} holds what polylm clean did not make ({there[0]}); name another "
            "folder with --gin.clean.output=FOLDER."
        )
    return Job(clean, language, tokenizer, beam, tuple(pieces(shards)), passed)


@contextmanager
def alone(output: str) -> Iterator[None]:
    """Holds an output on this machine against other processes."""
    if "://" in output:
        yield
        return

    def busy(process: str, host: str) -> UserError:
        return UserError(
            f"Process {process} on {host} is cleaning into {output}; wait for it or stop it."
        )

    with held(Path(output, WORK), busy):
        yield
