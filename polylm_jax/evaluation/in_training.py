"""The suite `small` between the steps of a run: asked on its mesh, of its own parameters."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from typing import Any

from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.errors import UserError
from polylm_jax.evaluation import choices
from polylm_jax.evaluation.evaluate import average, missing, nothing_there
from polylm_jax.evaluation.results import Store
from polylm_jax.evaluation.score import NotFinite
from polylm_jax.evaluation.settings import Evaluation
from polylm_jax.evaluation.work import Result, agreed
from polylm_jax.model.decoder import Decoder
from polylm_jax.train.exam import Record

# What a small model can show, as in gin_configs/evaluation/small.gin: scored by likelihood alone.
TASKS = ("ntrex", "word_order", "held_out_order", "xcopa")
PROTOCOL, LIMIT = "lm_eval", 100


def make_ask(
    settings: Evaluation,
    corpus: str,
    decoder: Decoder,
    tokenizer: Tokenizer,
    ways: int,
    say: Callable[[str], None],
) -> Callable[[dict[str, Any]], Record]:
    """Function (variables of the decoder) -> a record of the scores, see `train.exam`.

    The items are read, and packed into rows, once. corpus: the run's. ways: in which its mesh
    splits a batch. say: told what is missing. UserError where all is.
    """
    settings = replace(settings, tasks=TASKS, protocol=PROTOCOL, limit=settings.limit or LIMIT)
    every = settings.asked(corpus)
    there = [one for some in every.values() for one in some if not one.missing]
    for line in missing(every):
        say(line)
    if not there:
        raise UserError(f"train.evaluate_every asks for scores, but {nothing_there(settings)}")
    key = Store(BytesIO(), {}).key
    made = choices.make_plan(tokenizer, decoder.size.context, there, settings, ways, key)
    agreed("training", [], made.keys)
    # with too_long = "leave_out" a small model's context may leave nothing of a task
    whole = [any(item.trees for item in items) for items in made.items]
    for one in itertools.compress(there, (not some for some in whole)):
        say(f"missing: {one.task.name} {one.language}: all items are left out as too long")
    asked = list(itertools.compress(there, whole))
    if not asked:
        raise UserError(
            "train.evaluate_every asks for scores, but all items are longer than the model's "
            'context; set evaluation.too_long = "truncate".'
        )
    names = list(dict.fromkeys(one.task.name for one in asked))
    chance = {one.task.name: one.task.chance for one in asked if one.task.chance is not None}

    def ask(variables: dict[str, Any]) -> Record:
        kept = Store(BytesIO(), {})
        try:
            choices.ask(decoder, variables, made, range(len(made.planned)), kept)
        except NotFinite:
            return {"score": dict.fromkeys(names), "chance": chance}
        of_task: dict[str, list[Result]] = {name: [] for name in names}
        for result in itertools.compress(choices.results(made, kept), whole):
            of_task[result.asked.task.name].append(result)
        means = {
            name: average("", tuple(one.asked.language for one in some), some, settings.seed)
            for name, some in of_task.items()
        }
        return {
            "score": {name: mean.value for name, mean in means.items()},
            "error": {name: mean.error for name, mean in means.items()},
            "chance": chance,
            "by_language": {
                f"{name}/{one.asked.language}": one.measures[0].value
                for name, some in of_task.items()
                for one in some
            },
        }

    return ask
