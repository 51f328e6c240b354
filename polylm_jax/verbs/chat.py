"""Talk with a model in the terminal: /clear forgets, /stop or Ctrl-D ends, Ctrl-C cuts short."""

import argparse
import queue
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from polylm_jax import config
from polylm_jax.console import visible
from polylm_jax.data.tokenizer import Tokenizer
from polylm_jax.decode.chat import (
    FORMATS,
    ChatSettings,
    Segment,
    TextStream,
    Turn,
    converse,
    render,
    until,
)
from polylm_jax.decode.memory import Memory
from polylm_jax.errors import UserError
from polylm_jax.files import existing
from polylm_jax.serve import remote
from polylm_jax.serve.calls import Call, Engine, News
from polylm_jax.serve.settings import Serving
from polylm_jax.tune.writer import key_of
from polylm_jax.verbs.model_of import for_decoding, model_of, open_engine

# one text; tokens that are shown together are few enough to flow, enough to spare the host
SERVING = Serving(slots=1, burst=4)


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
        engine, memory = open_engine(model, SERVING, ready=False), Memory(model.tokenizer)
        print(f'Step {model.step} of {given.run}, format "{settings.format}". /clear, /stop.')
        turns = 0

        def answer(prompt: list[Segment]) -> Iterator[str]:
            nonlocal turns
            turns += 1  # so that the same question is not answered with the same words twice
            asked = replace(settings, seed=(settings.seed + turns) % 2**32)
            texts = stream(engine, model.tokenizer, memory, prompt, asked)
            return until(settings.stop, texts)

        def fits(prompt: list[Segment]) -> bool:
            room = engine.context
            return len(memory.ids(prompt)) + min(settings.new_tokens, room // 2) <= room

        form = FORMATS[settings.format]
        prompt_of = partial(render, form=form, keep_ends=settings.keep_ends)
        try:
            converse(_questions(), answer, fits, prompt_of, _say, form.marks)
        finally:
            engine.close(0)


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

    answered = False

    def answer(messages: remote.Messages) -> Iterator[str]:
        nonlocal answered
        try:
            yield from remote.stream_of_what_fits(given.url, key, fields, messages)
            answered = True
        except remote.Refused as refused:
            _say(f"[{refused}]")
        except UserError as fault:
            if not answered:
                raise
            _say(f"[{fault}]")  # the talk is not lost, and the server may be back for its next turn

    converse(_questions(), answer, lambda messages: True, _messages, _say)


def _messages(turns: Sequence[Turn]) -> remote.Messages:
    said = [(("user", turn.question), ("assistant", turn.answer)) for turn in turns]
    return [
        {"role": role, "content": text} for pair in said for role, text in pair if text is not None
    ]


def _say(text: str) -> None:
    print(visible(text), end="", flush=True)


def stream(
    engine: Engine,
    tokenizer: Tokenizer,
    memory: Memory,
    prompt: list[Segment],
    settings: ChatSettings,
) -> Iterator[str]:
    """The answer to a prompt, in parts of whole characters.

    memory: of the talk, so that the engine reads no more than what is new in it.
    """
    ids = memory.ids(prompt)
    said: list[int] = []
    text, told = TextStream(tokenizer, ids), queue.SimpleQueue[News]()
    call = Call(
        tuple(ids),
        min(settings.new_tokens, engine.context - len(ids)),
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        repetition_penalty=settings.repetition_penalty,
        seed=settings.seed,
    )
    number, news = engine.submit(call, told.put), News()
    try:
        while not news.ended:
            news = told.get()
            some = [one.token for one in news.new]
            said += some
            yield text.push(some)
    finally:
        engine.cancel(number)
        memory.note(prompt, ids, said)
    if news.fault:
        raise UserError(news.fault)
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
