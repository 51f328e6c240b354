"""Continue prompts with a trained model: a few, shown, or a file of them, to JSONL."""

import argparse
import json
import time
from functools import partial

from polylm_jax import config
from polylm_jax.console import LiveLine, format_duration, text_of_flag, visible
from polylm_jax.decode.chat import FORMATS, Turn, prompt_ids, render
from polylm_jax.decode.search import generate
from polylm_jax.errors import UserError
from polylm_jax.files import destination, existing, output, place
from polylm_jax.jsonl import read_records
from polylm_jax.sizes import Count
from polylm_jax.verbs import number
from polylm_jax.verbs.model_of import Model, for_decoding, model_of


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument(
        "--run", required=True, type=partial(existing, name="--run"), help="folder of a run"
    )
    parser.add_argument(
        "--prompt", action="append", default=[], type=text_of_flag, help="may be given again"
    )
    parser.add_argument(
        "--prompts", type=partial(place, name="--prompts"), help='JSONL file of {"prompt": TEXT}'
    )
    parser.add_argument(
        "--batch", type=number("--batch", Count), default=8, help="prompts of a file taken at once"
    )
    parser.add_argument("--out", type=partial(destination, name="--out"), help="file for the texts")
    parser.add_argument(
        "--chat", action="store_true", help="prompts are questions, asked in the run's chat.format"
    )
    parser.add_argument("--int8", action="store_true", help="weights of one byte")


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    if bool(given.prompt) == bool(given.prompts):
        raise UserError("give --prompt=TEXT, once or more, or --prompts=FILE.")
    if given.prompts and not given.out:
        raise UserError("say with --out=FILE.jsonl where the texts shall go.")
    prompts = given.prompt
    if given.prompts:
        prompts = [record["prompt"] for record in read_records(given.prompts, ("prompt",))]
    with model_of(given) as model:
        model = for_decoding(model, given.int8)
        print(f"Continuing {len(prompts)} prompts with step {model.step} of {given.run}.")
        if given.prompts:
            _to_file(model, prompts, given.chat, given.batch, given.out)
        else:
            _shown(model, prompts, given.chat, given.out)


def _texts(model: Model, prompts: list[str], chat: bool) -> list[str]:
    if chat:
        settings = config.get("chat")
        form = FORMATS[settings.format]
        asked = [render([Turn(prompt)], form, settings.keep_ends) for prompt in prompts]
        ids = [prompt_ids(model.tokenizer, segments) for segments in asked]
    else:
        ids = model.tokenizer.encode(prompts)
    new = generate(model.decoder, model.params, ids, config.get("sampling"), rows=model.rows)
    return model.tokenizer.decode(new)


def _shown(model: Model, prompts: list[str], chat: bool, out: str | None) -> None:
    pairs = zip(prompts, _texts(model, prompts, chat), strict=True)
    samples = "\n".join(f"[{prompt}]{text}\n" for prompt, text in pairs)
    print(visible(samples), end="")
    if out:
        with output(out) as file:
            file.write(samples.encode())
        print(f"The texts are in {out}.")


def _to_file(model: Model, prompts: list[str], chat: bool, batch: int, out: str) -> None:
    line, started = LiveLine(seconds=10), time.monotonic()
    # like lengths together: a batch is padded to its longest, and waits for it
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts: dict[int, str] = {}
    for first in range(0, len(order), batch):
        chosen = order[first : first + batch]
        texts |= zip(chosen, _texts(model, [prompts[i] for i in chosen], chat), strict=True)
        left = (time.monotonic() - started) / len(texts) * (len(prompts) - len(texts))
        line.show(
            f"{len(texts)} of {len(prompts)} prompts, ETA {format_duration(left)}",
            last=len(texts) == len(prompts),
        )
    with output(out) as file:
        for i, prompt in enumerate(prompts):
            record = {"prompt": prompt, "text": texts[i]}
            file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
    print(f"The texts are in {out}.")
