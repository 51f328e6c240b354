"""Talk with a model in the terminal: /clear forgets, /stop or Ctrl-D ends, Ctrl-C cuts short."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from polylm_jax import config
from polylm_jax.console import visible
from polylm_jax.decode.chat import (
    FORMATS,
    ChatSettings,
    Segment,
    TextStream,
    Turn,
    converse,
    prompt_ids,
    render,
    until,
)
from polylm_jax.decode.prefill import Held, prefill
from polylm_jax.decode.sampling import check_chosen
from polylm_jax.decode.search import decode_some
from polylm_jax.errors import UserError
from polylm_jax.files import existing
from polylm_jax.serve import remote
from polylm_jax.tune.writer import key_of
from polylm_jax.verbs.model_of import Model, for_decoding, model_of

TOKENS_AT_ONCE = 4  # shown together: few enough to flow, enough to spare the host


def flags(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's flags."""
    parser.add_argument("--run", type=partial(existing, name="--run"), help="folder of a run")
    parser.add_argument("--int8", action="store_true", help="weights of one byte")
    parser.add_argument(
        "--url",
        type=partial(remote.check_url, name="--url"),
        help="or a server that speaks OpenAI's chat completions, up to and with /v1",
    )
    parser.add_argument("--model", help="its name there; by default the first that is listed")
    parser.add_argument(
        "--key_variable",
        default="POLYLM_KEY",
        help="environment variable that holds the server's key, where it has one",
    )


def run(given: argparse.Namespace) -> None:
    """Runs the verb."""
    if bool(given.run) == bool(given.url):
        raise UserError("give --run=DIR, or --url=http://127.0.0.1:8000/v1 of a server.")
    if given.url:
        _talk_with_a_server(given, config.get("chat"))
        return
    with model_of(given) as model:
        model, settings = for_decoding(model, given.int8), config.get("chat")
        room = model.decoder.size.context
        print(f'Step {model.step} of {given.run}, format "{settings.format}". /clear, /stop.')
        turns, memory = 0, Memory()

        def answer(prompt: list[Segment]) -> Iterator[str]:
            nonlocal turns
            turns += 1  # so that the same question is not answered with the same words twice
            seed = (settings.seed + turns) % 2**32
            texts = stream(model, prompt, replace(settings, seed=seed), memory)
            return until(settings.stop, texts)

        def fits(prompt: list[Segment]) -> bool:
            asked = len(prompt_ids(model.tokenizer, prompt))
            return asked + min(settings.new_tokens, room // 2) <= room

        form = FORMATS[settings.format]
        prompt_of = partial(render, form=form, keep_ends=settings.keep_ends)
        converse(_questions(), answer, fits, prompt_of, _say, form.marks)


def _talk_with_a_server(given: argparse.Namespace, settings: ChatSettings) -> None:
    """As with a run; what OpenAI does not know is asked for only where it is set."""
    key = key_of(given.key_variable, "--key_variable", needed=False)
    try:
        model = given.model or remote.first_model(given.url, key)
    except remote.Refused as refused:
        raise UserError(f"{given.url} says no: {refused}") from None
    usual = ChatSettings()
    fields = {"model": model, "max_tokens": settings.new_tokens, "top_p": settings.top_p}
    fields["temperature"] = settings.temperature
    for name in ("top_k", "repetition_penalty", "seed", "stop"):
        if (value := getattr(settings, name)) != getattr(usual, name):
            fields[name] = value
    print(f"{model} at {given.url}. /clear, /stop.")

    def answer(messages: remote.Messages) -> Iterator[str]:
        try:
            yield from remote.stream_of_what_fits(given.url, key, fields, messages)
        except remote.Refused as refused:
            _say(f"[{refused}]")

    converse(_questions(), answer, lambda messages: True, _messages, _say)


def _messages(turns: Sequence[Turn]) -> remote.Messages:
    said = [(("user", turn.question), ("assistant", turn.answer)) for turn in turns]
    return [
        {"role": role, "content": text} for pair in said for role, text in pair if text is not None
    ]


def _say(text: str) -> None:
    print(visible(text), end="", flush=True)


@dataclass
class Memory:
    """What the cache holds of a talk, so that a turn reads no more than what is new in it."""

    held: Held | None = None

    def take(self) -> Held | None:
        """Gives it away, for it is used up even by a call that is interrupted."""
        held, self.held = self.held, None
        return held


def stream(
    model: Model, prompt: list[Segment], settings: ChatSettings, memory: Memory | None = None
) -> Iterator[str]:
    """The answer to a prompt, in parts of whole characters."""
    memory = memory or Memory()
    ids = [prompt_ids(model.tokenizer, prompt)]
    text = TextStream(model.tokenizer, ids[0])
    # room for all that can come, so that a longer talk needs no other program
    room = model.decoder.size.context
    state = prefill(
        model.decoder,
        settings,
        model.params,
        ids,
        rows=model.rows,
        slots=room,
        held=memory.take(),
    )
    read = ids[0]
    while not state.done.all():
        memory.take()
        state, new, counts = decode_some(
            model.decoder, settings, model.params, state, TOKENS_AT_ONCE
        )
        check_chosen(np.asarray(new))
        some = new[0, : int(counts[0])].tolist()
        read = [*read, *some]
        memory.held = Held(read, state.cache)
        yield text.push(some)
    yield text.close()


def _questions() -> Iterator[str]:
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            print()
        except EOFError:
            print()
            return
