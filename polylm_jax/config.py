"""Gin: the only module that imports it. Files and flags in, checked dataclasses out.

Gin's own parser reads the files. What it finds is kept here and not in gin's registry, so that
whatever no setting takes up is seen, and each value knows the line that it came from.
"""

import ast
import difflib
import os
import re
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gin import config_parser

from polylm_jax.data.clean.engine import Beam
from polylm_jax.data.clean.language import Identification
from polylm_jax.data.clean.settings import Clean
from polylm_jax.data.clean.thresholds import Thresholds
from polylm_jax.data.corpus import Corpus
from polylm_jax.data.rows import RowSettings
from polylm_jax.data.schedule import Schedule
from polylm_jax.data.tokenizer import TokenizerTraining
from polylm_jax.decode.chat import ChatSettings
from polylm_jax.decode.sampling import Sampling
from polylm_jax.errors import UserError
from polylm_jax.evaluation.settings import Evaluation
from polylm_jax.model.decoder import Compute
from polylm_jax.model.lora import Lora
from polylm_jax.model.parameters import Init
from polylm_jax.parallel.mesh import MeshShape
from polylm_jax.ranges import fit, hints_of
from polylm_jax.serve.settings import Serving
from polylm_jax.sizes import Size
from polylm_jax.train.loop import Training
from polylm_jax.train.optimizer import OptimizerSettings
from polylm_jax.tune.examples import ExampleSettings
from polylm_jax.tune.filters import TaskFilters
from polylm_jax.tune.instruct import TuneSettings
from polylm_jax.tune.self_instruct import SelfInstruct
from polylm_jax.tune.writer import Writer

# Every name that a gin file may set: block.field of one of these dataclasses.
BLOCKS: dict[str, type] = {
    "model": Size,
    "init": Init,
    "compute": Compute,
    "mesh": MeshShape,
    "optimizer": OptimizerSettings,
    "curriculum": Schedule,
    "corpus": Corpus,
    "tokenizer": TokenizerTraining,
    "rows": RowSettings,
    "train": Training,
    "sampling": Sampling,
    "chat": ChatSettings,
    "lora": Lora,
    "examples": ExampleSettings,
    "tune": TuneSettings,
    "self_instruct": SelfInstruct,
    "writer": Writer,
    "task_filters": TaskFilters,
    "evaluation": Evaluation,
    "serve": Serving,
    "clean": Clean,
    "language": Identification,
    "thresholds": Thresholds,
    "beam": Beam,
}
SETTINGS = {
    f"{name}.{field.name}": (name, field.name)
    for name, block in BLOCKS.items()
    for field in fields(block)
}

NAME = re.compile(r"[\w./]*")

# The files that come with the package: in it where it was installed, beside it in a clone.
GIN_FILES = Path(__file__).parent / "gin_configs"
if not GIN_FILES.is_dir():
    GIN_FILES = Path(__file__).parents[1] / "gin_configs"

_in_force: dict[str, Any] = {}


@dataclass(frozen=True)
class Macro:
    """%NAME in a value: stands for what a line NAME = … says, wherever that line is."""

    name: str


@dataclass(frozen=True)
class Reference:
    """@NAME in a value, gin's way to name a function; no setting takes one."""

    name: str


@dataclass(frozen=True)
class Given:
    """One name = value. place: its file and line, and ": "; empty for a flag."""

    name: str
    value: Any
    place: str = ""


def parse(files: list[str], overrides: list[str], base: str = "") -> None:
    """Reads gin files in order, then overrides ("name=value"); later ones win.

    base: gin text to start from, such as a checkpoint's; a setting of it that is no more is
        passed over.
    A file that is not here is looked for among those of the package: runs/demo.gin.
    UserError names the file and line, and the nearest known name, of what is wrong.
    """
    start = [one for one in _read(base, Path("the checkpoint's gin")) if one.name in SETTINGS]
    read = [one for name in files for one in _file(_found(name))]
    given = [*start, *read, *map(_flag, overrides)]
    macros = {one.name: one for one in given if "." not in one.name}
    values = {one.name: one for one in given if "." in one.name}
    arguments: dict[str, dict[str, Any]] = {name: {} for name in BLOCKS}
    for name, one in values.items():
        if name not in SETTINGS:
            raise UserError(one.place + _unknown(name))
        block, field = SETTINGS[name]
        arguments[block][field] = _fitted(one, macros)
    used = {name for one in given for name in _macros_in(one.value)}
    for name, one in macros.items():
        if name not in used:
            near = _nearest(name, SETTINGS)
            raise UserError(f'{one.place}no setting takes up "{name}"; the nearest is "{near}".')
    _in_force.update({name: block(**arguments[name]) for name, block in BLOCKS.items()})


def only(name: str, content: bytes, file: str) -> Any:
    """The value of the one setting that a gin file, which has this content, is there for.

    UserError as of `parse`, and where the file makes another setting or not this one.
    """
    try:
        given = [*_read(content.decode("utf-8-sig").replace("\r\n", "\n"), Path(file))]
    except UnicodeDecodeError:
        raise UserError(f"{file} is no gin file: it is not text in UTF-8.") from None
    macros = {one.name: one for one in given if "." not in one.name}
    values = {one.name: one for one in given if "." in one.name}
    for other in values.keys() - {name}:
        where = values[other].place
        raise UserError(f"{where}{other} is not read here; give it in a gin file of your own.")
    if name not in values:
        raise UserError(f"{file} has no {name}; move it away, and it is made anew.")
    return _fitted(values[name], macros)


def get(name: str) -> Any:
    """The dataclass of one block, from what has been parsed."""
    return _in_force[name] if _in_force else BLOCKS[name]()


def resolved() -> str:
    """Every value in force, defaults included, as a gin file that gives the same run."""
    lines = []
    for name in BLOCKS:
        settings = get(name)
        lines += [f"{name}.{f.name} = {getattr(settings, f.name)!r}" for f in fields(settings)]
        lines.append("")
    return "\n".join(lines)


class _Values(config_parser.ParserDelegate):
    """What gin's parser makes of values that are no literals."""

    def macro(self, name: str) -> Macro:
        return Macro(name)

    def configurable_reference(self, name: str, evaluate: bool) -> Reference:
        return Reference(f"{name}()" if evaluate else name)


def _found(name: str) -> Path:
    """The file that a name means: the one here, or else the package's."""
    here = Path(os.path.expanduser(name))
    return here if os.path.lexists(here) else _packaged(name) or here


def _packaged(name: str) -> Path | None:
    """The package's gin file of this name, with gin_configs/ before it or without, if any."""
    path = Path(os.path.normpath(GIN_FILES / name.removeprefix("gin_configs/")))
    return path if path.is_relative_to(GIN_FILES) and os.path.isfile(path) else None


def _file(file: Path, including: tuple[Path, ...] = ()) -> Iterator[Given]:
    """What a gin file and those that it includes say, in order."""
    try:
        text = file.read_text("utf-8-sig")
    except FileNotFoundError:
        raise UserError(
            f"there is no gin file {file}, here or in the package; the nearest there is "
            f"{_nearest(str(file), _names())}."
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{file} is no gin file: it is not text in UTF-8.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{file} cannot be read as a gin file: {reason}.") from None
    yield from _read(text, file, (*including, file.resolve()))


def _names() -> list[str]:
    """The names of the package's gin files, as --gin_file takes them."""
    return sorted(str(path.relative_to(GIN_FILES)) for path in GIN_FILES.rglob("*.gin"))


def _read(text: str, file: Path, including: tuple[Path, ...] = ()) -> Iterator[Given]:
    try:
        for said in config_parser.ConfigParser(text, _Values()):
            place = f"{file}:{said.location.line_num}: "
            if isinstance(said, config_parser.BindingStatement):
                name = ".".join(filter(None, (said.selector, said.arg_name)))
                yield Given(f"{said.scope}/{name}" if said.scope else name, said.value, place)
            elif isinstance(said, config_parser.IncludeStatement):
                yield from _file(_included(said.filename, file, including, place), including)
            elif isinstance(said, config_parser.ImportStatement):
                raise UserError(f"{place}a gin file imports nothing here; take the line out.")
    except tokenize.TokenError as error:
        reason, (line, _) = error.args
        raise UserError(f"{file}:{line}: {reason}; close what is open.") from None
    except SyntaxError as error:
        line = (error.text or "").strip()
        raise UserError(
            f"{file}:{error.lineno}: {line[:60]!r} is no gin; write block.field = VALUE, with "
            "words in quotes."
        ) from None
    except (RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{file} cannot be read as gin: {error}.") from None


def _included(name: str, file: Path, including: tuple[Path, ...], place: str) -> Path:
    """The file that an include means: beside the one that includes it, from the folder that holds
    that one's gin_configs/, from where the command is given, or the package's."""
    inside = [folder.parent for folder in file.resolve().parents if folder.name == "gin_configs"]
    folders = (file.parent, *inside[-1:], Path())
    places = [folder / os.path.expanduser(name) for folder in folders]
    found = next((path for path in places if os.path.isfile(path)), None) or _packaged(name)
    if found is None:
        shown = repr(name)[1:-1]
        raise UserError(f"{place}there is no gin file {shown} to include; mend the path.")
    if found.resolve() in including:
        raise UserError(f"{place}{name} includes itself; take the line out.")
    return found


def _flag(binding: str) -> Given:
    """--gin.NAME=VALUE; words need no quotes there: --gin.train.folder=runs/x."""
    name, equals, text = (part.strip() for part in binding.partition("="))
    if not NAME.fullmatch(name):
        raise UserError(f"{'--gin.' + name!r} names no setting; write --gin.BLOCK.FIELD=VALUE.")
    if not equals:
        raise UserError(f"--gin.{name} has no value; write --gin.{name}=VALUE.")
    if text.startswith("%"):
        return Given(name, Macro(text[1:]))
    if text.startswith("@"):
        return Given(name, Reference(text[1:]))
    try:
        return Given(name, ast.literal_eval(text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return Given(name, text)


def _fitted(one: Given, macros: dict[str, Given]) -> Any:
    """The value of a setting that there is, as its type has it."""
    block, field = SETTINGS[one.name]
    value = _resolved(one.value, one, macros)
    try:
        return fit(value, hints_of(BLOCKS[block])[field], one.name)
    except UserError as error:
        raise UserError(f"{one.place}{error}") from None


def _macros_in(value: Any) -> Iterator[str]:
    if isinstance(value, Macro):
        yield value.name
    elif isinstance(value, list | tuple | dict):
        for part in [*value, *(value.values() if isinstance(value, dict) else ())]:
            yield from _macros_in(part)


def _resolved(
    value: Any, one: Given, macros: dict[str, Given], within: tuple[str, ...] = ()
) -> Any:
    """The value with what its macros stand for, and theirs."""
    if isinstance(value, Reference):
        raise UserError(
            f"{one.place}{one.name} = @{value.name}: no setting takes a function; give a value, "
            "or quotes around a word."
        )
    if isinstance(value, Macro):
        name = value.name
        if name not in macros:
            near = f', or mean "%{_nearest(name, macros)}"' if macros else ""
            raise UserError(
                f"{one.place}{one.name} = %{name}, but nothing says what {name} is; add "
                f'"{name} = VALUE"{near}.'
            )
        if name in within:
            raise UserError(f"{one.place}{one.name} = %{name}, which stands for itself.")
        return _resolved(macros[name].value, one, macros, (*within, name))
    if isinstance(value, list | tuple):
        return type(value)(_resolved(item, one, macros, within) for item in value)
    if isinstance(value, dict):
        return {k: _resolved(item, one, macros, within) for k, item in value.items()}
    return value


def _unknown(name: str) -> str:
    scope, _, rest = name.rpartition("/")
    if scope:
        near = rest if rest in SETTINGS else _nearest(rest, SETTINGS)
        return f'"{name}" sets nothing, as there are no scopes here; write "{near}".'
    block = name.rpartition(".")[0]
    if block not in BLOCKS:
        return f'there is no block "{block}"; the nearest is "{_nearest(block, BLOCKS)}".'
    return f'there is no setting "{name}"; the nearest is "{_nearest(name, SETTINGS)}".'


def _nearest(word: str, names: Iterable[str]) -> str:
    """The most similar name, or the one whose last part is most similar."""

    def likeness(name: str) -> float:
        parts = (name, name.rpartition(".")[2])
        return max(difflib.SequenceMatcher(None, word, part).ratio() for part in parts)

    return max(names, key=likeness)
