"""A request's life: its prompts as ids, its calls at the engine, its text as it comes, its end."""

import asyncio
import itertools
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from polylm_jax.data.documents import stretches
from polylm_jax.data.tokenizer import AT_ONCE, EOS, Tokenizer
from polylm_jax.decode.chat import (
    FORMATS,
    ChatSettings,
    Format,
    Segment,
    TextStream,
    Turn,
    Until,
    inert,
    render,
)
from polylm_jax.decode.memory import Memory
from polylm_jax.decode.sampling import Sampling
from polylm_jax.ranges import INT32, TINY
from polylm_jax.serve.calls import Call, Engine, News, Said
from polylm_jax.serve.fields import DEFAULT_NEW, Chat, Completion, Message, Refusal

COLDEST = 1e-9  # temperatures below are 0, the best token


@dataclass(frozen=True)
class Served:
    """What is served, as far as a request must know it.

    name: what it is called in requests. chat: how the run wants to be talked with; what a request
    of a chat does not say is taken from there. most: calls that run and wait at once, at most.
    """

    name: str
    tokenizer: Tokenizer
    context: int
    chat: ChatSettings
    most: int = INT32

    @property
    def form(self) -> Format:
        return FORMATS[self.chat.format]


@dataclass(frozen=True)
class Asked:
    """A request that was understood.

    talk: the conversation; None for a text that is completed. calls: one for each choice, those of
    a prompt side by side. likeliest: None where no log-probabilities are told.
    """

    talk: Sequence[Segment] | None
    calls: tuple[Call, ...]
    n: int
    stop: tuple[str, ...]
    stream: bool
    usage: bool
    echo: bool
    likeliest: int | None

    @property
    def chat(self) -> bool:
        return self.talk is not None

    @property
    def prompt_tokens(self) -> int:
        return sum(len(call.prompt) for call in self.calls[:: self.n])


def conversation(messages: Sequence[Message], form: Format, keep_ends: bool) -> list[Segment]:
    """The prompt of a conversation.

    The formats know questions and answers only: what a system says stands before the question that
    follows, and what one side says in several messages is one, in lines. A last message of the
    assistant is gone on from.
    """
    said = [
        "\n".join(text for _, text in group)
        for _, group in itertools.groupby(messages, lambda message: message[0] == "assistant")
    ]
    said = ["", *said] if messages[0][0] == "assistant" else said
    turns = [Turn(*pair) for pair in zip(said[::2], said[1::2], strict=False)]
    if len(said) % 2:
        return render([*turns, Turn(said[-1])], form, keep_ends)
    begun = Segment(inert(said[-1], form), answers=(0,))
    return [*render([*turns[:-1], Turn(said[-2])], form, keep_ends), begun]


def understand(said: Completion | Chat, served: Served, memory: Memory) -> Asked:
    """What a request asks of the engine; Refusal where that cannot be.

    memory: of the talks so far.
    """
    if said.model not in ("", served.name):
        raise Refusal(
            404,
            f"There is no model {said.model[:100]!r} here; the model is {served.name!r}.",
            "model",
            "model_not_found",
        )
    chat = isinstance(said, Chat)
    talk: Sequence[Segment] | None = None
    defaults = served.chat if chat else Sampling(temperature=1.0)
    if isinstance(said, Chat):
        _check_choices(said.n, served)
        talk = conversation(said.messages, served.form, served.chat.keep_ends)
        _check_size("".join(segment.text for segment in talk), served, "messages")
        prompts: Iterable[tuple[int, ...]] = [tuple(memory.ids(talk))]
        stop = (*(said.stop or served.chat.stop), *served.form.marks)
        likeliest = (said.top_logprobs or 0) if said.logprobs or said.top_logprobs else None
        echo = False
    else:
        _check_choices(said.n * len(said.prompt), served)
        prompts = (_ids(prompt, served) for prompt in said.prompt)
        stop, likeliest, echo = said.stop, said.logprobs, said.echo
    wanted = said.max_completion_tokens
    wanted = said.max_tokens if wanted is None else wanted
    temperature = _given(said.temperature, defaults.temperature)
    calls = []
    for prompt in prompts:
        room = served.context - len(prompt)
        if room < (wanted != 0):
            raise _too_long(f"{len(prompt):,}", served, "messages" if chat else "prompt")
        for choice in range(said.n):
            seed = secrets.randbits(32) if said.seed is None else (said.seed + choice) % 2**32
            calls.append(
                Call(
                    prompt,
                    min(room, _given(wanted, room if chat else DEFAULT_NEW)),
                    temperature if temperature >= COLDEST else 0.0,
                    max(0, _given(said.top_k, defaults.top_k)),
                    max(TINY, _given(said.top_p, defaults.top_p)),
                    _given(said.repetition_penalty, defaults.repetition_penalty),
                    said.presence_penalty,
                    said.frequency_penalty,
                    seed,
                    likeliest,
                    read=echo and likeliest is not None,
                )
            )
    return Asked(
        talk,
        tuple(calls),
        said.n,
        stop,
        said.stream,
        said.stream_options.include_usage,
        echo,
        likeliest,
    )


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _check_choices(count: int, served: Served) -> None:
    """Refusal for more answers than could ever be taken: it would be told to ask again for ever."""
    if count > served.most:
        raise Refusal(
            400,
            f"The request asks for {count:,} answers, but {served.most:,} run and wait here at "
            "most; ask for fewer at once.",
            "n",
            "too_many_choices",
        )


def _check_size(text: str, served: Served, param: str) -> None:
    """Refusal for a text that is far too long, by its beginning.

    Nothing else goes on while a text is encoded, and megabytes at once would take minutes.
    """
    count = 0
    for part in stretches(text, AT_ONCE) if len(text) > AT_ONCE else ():
        count += len(served.tokenizer.encode_inside([part])[0])
        if count > served.context:
            raise _too_long(f"at least {count:,}", served, param)


def _too_long(tokens: str, served: Served, param: str) -> Refusal:
    return Refusal(
        400,
        f"The prompt has {tokens} tokens, but the model's context of {served.context:,} holds "
        "prompt and answer; shorten it.",
        param,
        "context_length_exceeded",
    )


def _ids(prompt: str | tuple[int, ...], served: Served) -> tuple[int, ...]:
    tokenizer = served.tokenizer
    if isinstance(prompt, str):
        _check_size(prompt, served, "prompt")
        # a text from nothing begins as texts do in training
        return tuple(tokenizer.encode([prompt])[0]) or (EOS,)
    if max(prompt) >= tokenizer.size:
        raise Refusal(
            400,
            f"prompt holds the id {max(prompt)}, but the tokenizer has {tokenizer.size:,}; encode "
            "it with the model's own.",
            "prompt",
            "invalid_value",
        )
    return prompt


@dataclass(frozen=True)
class Token:
    """A token as it is told. at: where its text begins in the choice's."""

    said: Said
    at: int


@dataclass(frozen=True)
class Piece:
    """What a choice says next.

    tokens: those whose text begins in it, where log-probabilities are told.
    finish: "" while it goes on, "stop", "length", "cancelled" or "failed".
    """

    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish: str = ""
    fault: str = ""


class Choice:
    """The text of one call as its news come, cut before the first stop.

    text: all that was said. finish: as in Piece. ids: that were added up to the end, without
    `</s>`, with those of the stop. reused: see News.
    """

    def __init__(self, tokenizer: Tokenizer, call: Call, stop: Sequence[str], echo: bool) -> None:
        self._call, self._echo, self._read_back = call, echo, echo
        self._stream = TextStream(tokenizer, () if echo else call.prompt)
        self._until = Until(stop)
        self._pending: list[Token] = []
        self._complete = 0  # characters, those held back among them
        self.ids: list[int] = []
        self.text, self.finish, self.reused = "", "", 0

    @property
    def is_ended(self) -> bool:
        """Whether the model itself ended it."""
        return self.finish == "stop" and not self._until.done

    @property
    def count(self) -> int:
        return len(self.ids)

    def hear(self, news: News) -> Piece:
        """What the news let it say."""
        self.reused = self.reused or news.reused
        text = self._prompt(news) if self._echo else ""
        for said in () if self.finish else news.new:
            self.ids.append(said.token)
            text += self._until.push(self._added(said))
            if self._until.done:
                self.finish = "stop"
                break
        if news.ended and not self.finish:
            text += self._until.push(self._stream.close()) + self._until.close()
            self.finish = "stop" if self._until.done else news.ended
            if self._read_back and self._call.likeliest is not None and self.is_ended:
                # who measures with echo asks for one token more, and takes the last one away
                self._pending.append(Token(Said(EOS), self._complete))
        elif not text and not self.finish:
            return Piece()
        self.text += text
        return Piece(text, tuple(self._released()), self.finish, news.fault)

    def _prompt(self, news: News) -> str:
        """The prompt's own text, once."""
        if self._call.read and not news.prompt:
            return ""  # its log-probabilities come with it
        self._echo = False
        said = news.prompt or [Said(token) for token in self._call.prompt]
        return "".join(map(self._added, said))

    def _added(self, said: Said) -> str:
        if self._call.likeliest is not None:
            self._pending.append(Token(said, self._complete))
        text = self._stream.push([said.token])
        self._complete += len(text)
        return text

    def _released(self) -> Iterator[Token]:
        """Tokens whose text has begun to be said; at the end those that have none, too."""
        whole = self.finish and not self._until.done
        while self._pending and (whole or self._pending[0].at < len(self.text)):
            yield self._pending.pop(0)


class Work:
    """A request's calls at the engine, and their news: the one owner that may cancel them."""

    def __init__(self, engine: Engine, asked: Asked) -> None:
        """Submits all calls, or none: then Busy is raised."""
        self._engine, self._news = engine, asyncio.Queue[tuple[int, News]]()
        self._loop = asyncio.get_running_loop()
        self._open: dict[int, int] = {}
        self._refusal: Refusal | None = None
        for index, call in enumerate(asked.calls):
            try:
                self._open[index] = engine.submit(call, partial(self._tell, index))
            except BaseException:
                self.leave()
                raise

    def _tell(self, index: int, news: News) -> None:
        with suppress(RuntimeError):  # the loop may be closed when the last calls are ended
            self._loop.call_soon_threadsafe(self._news.put_nowait, (index, news))

    async def news(self) -> tuple[int, News]:
        """The next news, and of which call; Refusal where the server breaks it off."""
        index, news = await self._news.get()
        if self._refusal:
            raise self._refusal
        if news.ended:
            self._open.pop(index, None)
        return index, news

    def leave(self, *indices: int) -> None:
        """Cancels these calls, or all, where they have not ended; once each."""
        for index in indices or tuple(self._open):
            if (number := self._open.pop(index, None)) is not None:
                self._engine.cancel(number)

    def break_off(self, refusal: Refusal) -> None:
        """Ends it with an error."""
        self._refusal = refusal
        self.leave()
        self._news.put_nowait((0, News()))
