"""What is evaluated, and how."""

from dataclasses import dataclass
from typing import Annotated

from polylm_jax.errors import UserError
from polylm_jax.evaluation.tasks import PROTOCOLS, Asked, ask, table
from polylm_jax.files import LocalPlace
from polylm_jax.model.decoder import Dtype
from polylm_jax.ranges import OneOf, Range, Seed, check
from polylm_jax.sizes import Count

TOO_LONG = ("truncate", "leave_out")


@dataclass(frozen=True)
class Evaluation:
    """A benchmark's settings.

    tasks: names in the table of tasks, in the order of the report.
    languages: only these; all that a task has if empty.
    protocol: "paper" (lm-eval of May 2023, which the paper's figures come from) or "lm_eval"
        (0.4.13), where they differ.
    folder: where the benchmarks' files lie; nothing is downloaded.
    limit: items of each task and language, the first so many; 0 for all.
    row_length: tokens of a row that items are packed into, or from a quarter to twice as many if
        that is less work; what fits none has wider rows.
    rows: rows of that length computed at once; a device of its own takes many more.
    too_long: an item that is longer than the model's context is cut as lm-eval cuts it, which is
        counted, or left out.
    dtype: of the products; the run's if None. float32 gives the numbers of others to 1e-3.
    seed: of the bootstrap that says how sure an average over languages is.
    """

    tasks: tuple[str, ...] = ("xnli", "xcopa", "pawsx", "xwinograd")
    languages: tuple[str, ...] = ()
    protocol: Annotated[str, OneOf(*PROTOCOLS)] = "paper"
    folder: LocalPlace = "data/evaluation"
    limit: Annotated[int, Range(1, also=(0, "all"))] = 0
    row_length: Annotated[int, Range(16)] = 512
    rows: Count = 4
    too_long: Annotated[str, OneOf(*TOO_LONG)] = "truncate"
    dtype: Dtype | None = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        check(self, "evaluation")

    def chosen(self) -> list[tuple[str, list[str]]]:
        """(task, its languages) in order; UserError for a name that is none."""
        known = table()
        for name in self.tasks:
            if name not in known:
                raise UserError(
                    f'evaluation.tasks has "{name}"; the tasks are {", ".join(sorted(known))}.'
                )
        some = {code for name in self.tasks for code in known[name].languages}
        for code in self.languages:
            if code not in some:
                raise UserError(
                    f'evaluation.languages has "{code}", which no task here has; they have '
                    f"{', '.join(sorted(some))}."
                )
        return [
            (name, [c for c in known[name].languages if c in (self.languages or some)])
            for name in self.tasks
        ]

    def asked(self, corpus: str) -> dict[str, list[Asked]]:
        """Each task in each of its languages, read. corpus: whose held-out documents are taken
        by the tasks that are made of those."""
        known = table()
        return {
            name: [
                ask(
                    known[name],
                    code,
                    self.protocol,
                    corpus if known[name].of_corpus else self.folder,
                    self.limit,
                )
                for code in codes
            ]
            for name, codes in self.chosen()
        }
