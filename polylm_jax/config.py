"""Gin: the only module that imports it. Files and flags in, checked dataclasses out."""

import ast
import contextlib
import difflib
import re
import types
import typing
from dataclasses import fields
from pathlib import Path
from typing import Any

import gin

from polylm_jax.data.corpus import Corpus
from polylm_jax.data.curriculum import Schedule
from polylm_jax.data.rows import RowSettings
from polylm_jax.data.tokenizer import TokenizerTraining
from polylm_jax.decode.chat import ChatSettings
from polylm_jax.decode.sampling import Sampling
from polylm_jax.errors import UserError
from polylm_jax.model.decoder import Compute
from polylm_jax.model.parameters import Init
from polylm_jax.parallel.mesh import MeshShape
from polylm_jax.sizes import Size
from polylm_jax.train.loop import Training
from polylm_jax.train.optimizer import OptimizerSettings

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
}

for _name, _block in BLOCKS.items():
    gin.external_configurable(_block, _name)


def parse(files: list[str], overrides: list[str], base: str = "") -> None:
    """Reads gin files in order, then overrides ("name=value"); later ones win.

    base: gin text to start from, such as a checkpoint's. UserError names the file and line,
    and the nearest known name, of what is wrong.
    """
    start = Path.cwd()
    gin.clear_config()
    gin.parse_config(base)
    for name in files:
        if not Path(name).is_file():
            raise UserError(f"there is no gin file {name}; those of runs are in gin_configs/runs/.")
    try:
        for name in files:
            # includes are written from the folder that holds gin_configs/
            with contextlib.chdir(_root_of(Path(name))):
                gin.parse_config_file(str(Path(start, name)))
        gin.parse_config([_quoted(binding) for binding in overrides])
    except (ValueError, SyntaxError, TypeError, OSError) as error:
        raise UserError(_explain(str(error))) from error
    for name in BLOCKS:
        get(name)


def get(name: str) -> Any:
    """The dataclass of one block, from what has been parsed."""
    block = BLOCKS[name]
    hints = typing.get_type_hints(block)
    values = {}
    for field, value in gin.get_bindings(name).items():
        try:
            values[field] = _typed(value, hints[field])
        except TypeError:
            wanted = getattr(hints[field], "__name__", str(hints[field]))
            raise UserError(
                f"{name}.{field} = {value!r} is of the wrong type; it must be {wanted}."
            ) from None
    return block(**values)


def resolved() -> str:
    """Every value in force, defaults included, as a gin file that gives the same run."""
    lines = []
    for name in BLOCKS:
        settings = get(name)
        lines += [f"{name}.{f.name} = {getattr(settings, f.name)!r}" for f in fields(settings)]
        lines.append("")
    return "\n".join(lines)


def _root_of(file: Path) -> Path:
    inside = [parent for parent in file.resolve().parents if parent.name == "gin_configs"]
    return inside[-1].parent if inside else Path.cwd()


def _quoted(binding: str) -> str:
    """Lets plain words stand for strings: --gin.train.folder=runs/x."""
    name, _, value = binding.partition("=")
    try:
        ast.literal_eval(value.strip())
    except (ValueError, SyntaxError):
        if not value.strip().startswith(("@", "%")):
            value = repr(value.strip())
    return f"{name} = {value}"


def _typed(value: Any, hint: Any) -> Any:
    """The value as the annotation has it (lists become tuples, ints floats), or TypeError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _typed(value, next(a for a in arguments if a is not type(None)))
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError
        if arguments[-1] is Ellipsis:
            return tuple(_typed(item, arguments[0]) for item in value)
        if len(arguments) != len(value):
            raise TypeError
        return tuple(_typed(item, one) for item, one in zip(value, arguments, strict=True))
    if origin is dict:
        if not isinstance(value, dict):
            raise TypeError
        return {_typed(k, arguments[0]): _typed(v, arguments[1]) for k, v in value.items()}
    if hint is float and type(value) is int:
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is not hint:
        raise TypeError
    return value


def _explain(message: str) -> str:
    """One sentence from gin's message, with the place and the nearest known name."""
    place = re.search(r'In file "([^"]+)", line (\d+)', message)
    place = place or re.search(r"\((\S+), line (\d+)\)", message)
    include = re.search(r"include\s+['\"]([^'\"]+)", message)
    where = f"{place[1]}:{place[2]}: " if place else ""
    known = [f"{name}.{f.name}" for name, block in BLOCKS.items() for f in fields(block)]
    if include:
        return f"{where}there is no gin file {include[1]} to include; mend the path."
    parameter = re.search(
        r"Configurable '([\w.]+)' doesn't have a parameter named '(\w+)'", message
    )
    block = re.search(r"No configurable matching '([\w.]+)'", message)
    if parameter:
        wrong = f"{parameter[1]}.{parameter[2]}"
        near = difflib.get_close_matches(wrong, known, 1, 0)[0]
        return f'{where}there is no setting "{wrong}"; the nearest is "{near}".'
    if block:
        near = difflib.get_close_matches(block[1], list(BLOCKS), 1, 0)[0]
        return f'{where}there is no block "{block[1]}"; the nearest is "{near}".'
    return f"{where}{message.strip().splitlines()[0]}"
