"""Seeds: the tasks that a person wrote, in a file of ours, of self-instruct's or in plain form.

A line is {"instruction": …, "input": …, "output": …} or self-instruct's, whose first instance is
taken. "keep": ["input", …] names the fields that stay as they are when a seed is translated: the
paper left 23 of its 162 partly in English (App. A), where they are about a language, or code.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from polylm_jax.errors import UserError
from polylm_jax.tune.lexicon import NO_INPUT, NOTHING
from polylm_jax.tune.parse import Block, Task, says

OURS = Path(__file__).with_name("seeds.jsonl")
FIELDS = ("instruction", "input", "output")


@dataclass(frozen=True)
class Seed:
    """A task and the names of its fields that stay untranslated."""

    task: Task
    keep: tuple[str, ...] = ()


def read_seeds(path: str | Path) -> list[Seed]:
    """The seeds of a file. UserError names a line that is none, or says that there are none."""
    try:
        # a text may hold what Unicode calls the end of a line
        lines = Path(path).read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8; save it as UTF-8.") from None
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"there is no file of seeds {path}; mend self_instruct.seeds.") from None
    seeds = [_seed(line, f"{path}:{n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not seeds:
        raise UserError(f"{path} is empty; give one seed a line.")
    return seeds


def as_lines(seeds: Sequence[Seed]) -> bytes:
    """A file of seeds."""
    records = [asdict(s.task) | ({"keep": s.keep} if s.keep else {}) for s in seeds]
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()


def translated(seed: Seed, blocks: Sequence[Block]) -> Seed | None:
    """A seed in another language, from a reply read as blocks; None where it is not there whole."""
    if len(blocks) != 1 or blocks[0].cut or blocks[0].cut_there:
        return None
    said = {name: getattr(blocks[0], name) for name in FIELDS}
    if seed.task.input is None:
        said["input"] = None
    new = {
        name: getattr(seed.task, name) if name in seed.keep else text for name, text in said.items()
    }
    for name, text in asdict(seed.task).items():
        if text is not None and (new[name] is None or says(new[name], NOTHING)):
            return None
    return Seed(Task(**new), seed.keep)


def _seed(line: str, where: str) -> Seed:
    try:
        record = json.loads(line)
        given = {**record, **record["instances"][0]} if "instances" in record else record
        texts = [given[name] for name in FIELDS if name != "input"]
        keep = tuple(record.get("keep", ()))
        said = given.get("input") or ""
        whole = all(isinstance(text, str) and text.strip() for text in (*texts, said or "-"))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        whole = False
    if not whole or not set(keep) <= set(FIELDS):
        raise UserError(
            f'{where} is no seed; write {{"instruction": TEXT, "input": TEXT or null, "output": '
            'TEXT}, and "keep": ["input", …] for fields that stay untranslated.'
        )
    instruction, output = (text.strip() for text in texts)
    return Seed(Task(instruction, None if says(said, NO_INPUT) else said.strip(), output), keep)
