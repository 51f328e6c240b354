"""Continue prompts with a trained model: a few, shown, or a file of them, to JSONL."""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from polylm_jax import config
from polylm_jax.console import text_of_flag, visible
from polylm_jax.data.tokenizer import EOS
from polylm_jax.decode.chat import FORMATS, Turn, decode_after, prompt_ids, render
from polylm_jax.decode.search import generate, why_ended
from polylm_jax.errors import UserError
from polylm_jax.files import destination, existing, output, place
from polylm_jax.jsonl import Record, faulty, read_records
from polylm_jax.records import results
from polylm_jax.sizes import Count
from polylm_jax.verbs import number
from polylm_jax.verbs.model_of import Model, for_decoding, model_of

RESULTS = ("text", "ended", "error")


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument(
        "--run", required=True, type=partial(existing, name="--run"), help="folder of a run"
    )
    parser.add_argument(
        "--prompt", action="append", default=[], type=text_of_flag, help="may be given again"
    )
    parser.add_argument(
        "--prompts",
        type=partial(place, name="--prompts"),
        help='JSONL file of {"prompt": TEXT}; other fields are kept',
    )
    parser.add_argument(
        "--samples", type=number("--samples", Count), default=1, help="texts for each prompt"
    )
    parser.add_argument(
        "--batch", type=number("--batch", Count), default=8, help="texts of a file made at once"
    )
    parser.add_argument(
        "--out",
        type=partial(destination, name="--out"),
        help="file for the texts; JSONL if its name ends so, or for --prompts",
    )
    parser.add_argument(
        "--skip", action="store_true", help='give records that cannot be used an "error" and go on'
    )
    parser.add_argument(
        "--chat", action="store_true", help="prompts are questions, asked in the run's chat.format"
    )
    parser.add_argument("--int8", action="store_true", help="weights of one byte")


@dataclass(frozen=True)
class Task:
    """A text to be made. repeat: how often its prompt was asked before, so that draws differ."""

    ids: list[int]
    repeat: int


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    if bool(given.prompt) == bool(given.prompts):
        raise UserError("give --prompt=TEXT, once or more, or --prompts=FILE.")
    if given.prompts and not given.out:
        raise UserError("say with --out=FILE.jsonl where the texts shall go.")
    if given.prompts:
        added = (*RESULTS, "sample") if given.samples > 1 else RESULTS
        records = read_records(given.prompts, ("prompt",), added, given.skip)
    else:
        prompts = enumerate(given.prompt, 1)
        records = [Record(f"prompt {n}", {"prompt": prompt}) for n, prompt in prompts]
    with model_of(given) as model:
        if given.samples > 1 and not config.get("sampling").temperature:
            raise UserError(
                f"--samples={given.samples} are all the same where sampling.temperature = 0; give "
                "--gin.sampling.temperature=1.0, or another above 0."
            )
        records, tasks = _tasks(model, records, given.samples, given.skip, given.chat)
        model = for_decoding(model, given.int8)
        print(f"Continuing {len(records)} prompts with step {model.step} of {given.run}.")
        jsonl = given.prompts or (given.out or "").endswith(".jsonl")
        if jsonl:
            answers = _to_file(model, records, tasks, given)
        else:
            usable = [i for i, record in enumerate(records) if not record.fault]
            new = _answers(model, [tasks[i] for i in usable]) if usable else []
            answers = dict(zip(usable, new, strict=True))
        if given.prompt:
            texts = [
                answers[i]["text"] if i in answers else f" ({record.fault})"
                for i, record in enumerate(records)
            ]
            _shown(records, texts, "" if jsonl else given.out)


def _tasks(
    model: Model, records: Sequence[Record], samples: int, skip: bool, chat: bool
) -> tuple[list[Record], list[Task]]:
    """The records, so often as texts are wanted of each, and for each what is to be done.

    chat: whether the prompts are questions, to be asked in the run's format.
    """
    context = model.decoder.size.context
    prompts = ["" if record.fault else record.content["prompt"] for record in records]
    asked: Counter[tuple[int, ...]] = Counter()
    every, tasks = [], []
    encoded = _asked(model, prompts) if chat else model.tokenizer.encode(prompts)
    for record, ids in zip(records, encoded, strict=True):
        ids = ids or [EOS]  # a text from nothing begins as texts do in training
        if not record.fault and len(ids) >= context:
            fault = f"has {len(ids)} tokens but the model's context is {context}; shorten it"
            record = faulty(record, fault, skip)
        for sample in range(1 if record.fault else samples):
            more = {"sample": sample} if samples > 1 and not record.fault else {}
            every.append(replace(record, content=record.content | more))
            tasks.append(Task(ids, asked[tuple(ids)]))
            asked[tuple(ids)] += 1
    return every, tasks


def _asked(model: Model, questions: Sequence[str]) -> list[list[int]]:
    settings = config.get("chat")
    form = FORMATS[settings.format]
    turns = [render([Turn(question)], form, settings.keep_ends) for question in questions]
    return [prompt_ids(model.tokenizer, segments) for segments in turns]


def _answers(model: Model, tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """The text of each task, and why it ended."""
    sampling, prompts = config.get("sampling"), [task.ids for task in tasks]

    def text_of(row: int, new: list[int]) -> tuple[str, bool]:
        """The text before the first of the stop texts, and whether there is one."""
        whole = text = decode_after(model.tokenizer, prompts[row], new)
        for stop in sampling.stop:
            text = text.partition(stop)[0]
        return text, len(text) < len(whole)

    found = generate(
        model.decoder,
        model.params,
        prompts,
        sampling,
        rows=model.rows,
        repeats=[task.repeat for task in tasks],
        ended=(lambda row, new: text_of(row, new)[1]) if sampling.stop else None,
    )
    answers = []
    for row, (prompt, new) in enumerate(zip(prompts, found, strict=True)):
        text, stopped = text_of(row, new)
        why = why_ended(len(prompt), len(new), sampling.new_tokens, model.decoder.size.context)
        answers.append({"text": text, "ended": "stop" if stopped else why})
    return answers


def _shown(records: Sequence[Record], texts: Sequence[str], out: str | None) -> None:
    pairs = zip(records, texts, strict=True)
    samples = "\n".join(f"[{record.content['prompt']}]{text}\n" for record, text in pairs)
    print(visible(samples), end="")
    if out:
        with output(out) as file:
            file.write(samples.encode())
        print(f"The texts are in {out}.")


def _to_file(
    model: Model, records: Sequence[Record], tasks: Sequence[Task], given: argparse.Namespace
) -> dict[int, dict[str, Any]]:
    compute = model.decoder.compute
    made_from = {
        "verb": "generate",
        **model.identity,
        "sampling": asdict(config.get("sampling")),
        "int8": given.int8,
        "chat": asdict(config.get("chat")) if given.chat else None,
        "dtypes": [compute.dtype, compute.cache_dtype],
    }
    with results(records, given.out, made_from, "prompts") as kept:
        # like lengths together: a batch is padded to its longest, and waits for it
        order = sorted(kept.left, key=lambda i: len(tasks[i].ids))
        for first in range(0, len(order), given.batch):
            chosen = order[first : first + given.batch]
            answers = _answers(model, [tasks[i] for i in chosen])
            kept.add(dict(zip(chosen, answers, strict=True)))
    return kept.done
