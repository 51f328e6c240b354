"""The engine: a thread that has the devices, and what may be asked of it from any other.

A turn: who hung up leaves, who waits comes in, prompts are read within the schedule's allowance,
and a burst adds tokens to all texts. A prompt's reading gives its first token, so that none waits
for a burst.
"""

import itertools
import math
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from polylm_jax.decode.prefill import draw_of
from polylm_jax.decode.sampling import NO_TOKEN, NOT_FINITE, Sampling, Wishes
from polylm_jax.decode.shares import shares
from polylm_jax.decode.slots import Likely
from polylm_jax.errors import UserError, first_line
from polylm_jax.model.decoder import END_OF_DOCUMENT, Decoder
from polylm_jax.serve.calls import MOST_LIKELIEST, Busy, Call, Counts, News, Said
from polylm_jax.serve.programs import Device, Shape, idle_rows, widths_of
from polylm_jax.serve.schedule import READERS, Begin, Chunk, Job, Pace, Schedule, chunks_of
from polylm_jax.serve.settings import Serving

FEW = 4  # rows; a burst of fewer is hardly faster
HOLD = 0.02  # of a burst's time: so long those who were answered have for asking again
LONGEST_WAIT = 60  # seconds after which one who was refused is told to ask again, at most
MOST_PENALTY = 1e6  # scores less these stay far from what float32 cannot hold
CLOSING = "the server is closing."
CUT = "the server was closed before the answer was whole."

NO_NEWS = News()

_events: Counter[str] = Counter()


def _count(event: str, duration_secs: float, **_: str | int) -> None:
    _events[event] += 1


jax.monitoring.register_event_duration_secs_listener(_count)


def programs_compiled() -> int:
    """How many programs this process has compiled since this module is there."""
    return _events["/jax/core/compile/backend_compile_duration"]


@dataclass(eq=False)
class Under:
    """A call under way.

    tell: None once it raised an exception. asked: when it came. waited: see `News`. told: where
    asked for, how likely the prompt's tokens were, by their places: arrays like those of `Likely`.
    """

    call: Call
    job: Job
    tell: Callable[[News], None] | None
    asked: float = field(default_factory=time.monotonic)
    waited: float = 0.0
    told: Likely | None = None


class DeviceEngine:
    """An `Engine` on the devices that hold the parameters."""

    def __init__(
        self, decoder: Decoder, params: Any, serving: Serving, rows: int = 1, ready: bool = True
    ) -> None:
        """Takes all memory; to be called with the mesh in context.

        params: of `weights.for_decoding`. rows: ways in which the mesh splits a batch. ready:
            compiles all programs; else each when a call first needs it.
        """
        size, before = decoder.size, programs_compiled()
        if serving.context > size.context:
            raise UserError(
                f"serve.context = {serving.context}, but the model's context is {size.context}; "
                "give no more, or 0 for all of it."
            )
        self.context = serving.context or size.context
        self.slots = -(-serving.slots // rows) * rows
        self.broken, self.fault = threading.Event(), ""
        chunks = chunks_of(decoder.compute.prefill_chunk, serving.prompt_tokens, self.context)
        # only there has a row of a product the same bits among fewer
        cpu = jax.default_backend() == "cpu"
        alike = cpu and decoder.compute.dtype == "bfloat16" and rows == 1
        ways = next(n for n in range(shares(params, self.slots), 0, -1) if self.slots % n == 0)
        mine, readers = self.slots // ways, min(READERS, self.slots)
        few = mine // 4 if alike else 0
        shape = Shape(
            slots=self.slots,
            shares=ways,
            rows=[few, mine] if few >= FEW else [mine],
            context=self.context,
            burst=min(serving.burst, self.context),
            widths=widths_of(self.context, few=not ready),
            readers=readers,
            together=[1 << power for power in range(readers.bit_length())] if alike else [1],
            chunks=chunks,
            most=min(MOST_LIKELIEST, size.vocabulary),
        )
        self._size, self._before, self._queue = size, before, serving.queue
        self._device = Device(decoder, params, shape, ready)
        limits = self.context, chunks, serving.prompt_tokens, shape.together
        self._schedule = Schedule(self.slots, *limits)
        self._rows, self._pace = idle_rows(self.slots), Pace()
        self._calls: dict[int, Under] = {}
        self._left: set[int] = set()  # calls that were cancelled since the last turn
        self._freed = 0  # slots that came free in the last turn
        self._numbers = itertools.count(1)
        self._counts: Counter[str] = Counter()
        self._busy = 0.0  # seconds that turns took
        self._refusal, self._deadline = "", math.inf
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="polylm engine", daemon=True)
        self._thread.start()

    def submit(self, call: Call, tell: Callable[[News], None]) -> int:
        """See `Engine`. ValueError for a call that the engine cannot take at all."""
        self._check(call)
        with self._changed:
            if self._refusal:
                raise Busy(self._refusal, LONGEST_WAIT)
            schedule = self._schedule
            waiting = len(schedule.waiting)
            free = self.slots - len(schedule.going) - len(schedule.reading)
            if waiting >= self._queue + free:
                pace = self._busy / max(1, self._counts["ended"])
                seconds = min(LONGEST_WAIT, max(1, math.ceil(pace * waiting)))
                raise Busy(f"{waiting} calls wait already; ask again.", seconds)
            job = Job(next(self._numbers), call.prompt, anew=call.read)
            self._calls[job.number] = Under(call, job, tell)
            schedule.waiting.append(job)
            self._changed.notify()
        return job.number

    def cancel(self, number: int) -> None:
        """See `Engine`."""
        with self._changed:
            if number in self._calls:
                self._left.add(number)

    def counts(self) -> Counts:
        """See `Engine`."""
        with self._changed:
            schedule, counts = self._schedule, self._counts
            return Counts(
                slots=self.slots,
                running=len(schedule.going) + len(schedule.reading),
                waiting=len(schedule.waiting),
                prompt_tokens=counts["prompt"],
                new_tokens=counts["new"],
                reused_tokens=counts["reused"],
                cancelled=counts["cancelled"],
                failed=counts["failed"],
                compiled=programs_compiled() - self._before,
                room=counts["room"],
                used=counts["used"],
            )

    def close(self, seconds: float) -> None:
        """See `Engine`. Returns when the last call has ended."""
        with self._changed:
            self._refusal = self._refusal or CLOSING
            self._deadline = min(self._deadline, time.monotonic() + seconds)
            self._changed.notify()
        self._thread.join()

    def _check(self, call: Call) -> None:
        asked, most = len(call.prompt) + call.new_tokens, self._device.shape.most
        if not call.prompt or call.new_tokens < 0 or asked > self.context:
            raise ValueError(
                f"a prompt of {len(call.prompt)} tokens and {call.new_tokens} new ones do not fit "
                f"into a context of {self.context}"
            )
        if not 0 <= min(call.prompt) <= max(call.prompt) < self._size.vocabulary:
            raise ValueError(f"a prompt's ids lie between 0 and {self._size.vocabulary - 1}")
        if not 0 <= (call.likeliest or 0) <= most:
            raise ValueError(f"{call.likeliest} likeliest tokens were asked for, of {most}")
        penalties = call.presence_penalty, call.frequency_penalty
        if not all(abs(penalty) <= MOST_PENALTY for penalty in penalties):
            raise ValueError(f"penalties of {penalties} lie beyond {MOST_PENALTY}")
        try:
            Sampling(
                temperature=call.temperature,
                top_k=call.top_k,
                top_p=call.top_p,
                repetition_penalty=call.repetition_penalty,
                seed=call.seed % 2**32,
            )
        except UserError as error:
            raise ValueError(str(error)) from None

    def _work(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:
            traceback.print_exception(error)
            self.fault = f"the engine has failed ({first_line(error)}); start it again."
            self._end_all(self.fault)
            self.broken.set()

    def _turn(self) -> bool:
        """One turn, once there is something to do; whether there are more."""
        schedule = self._schedule
        with self._changed:
            self._changed.wait_for(lambda: self._calls or self._deadline < math.inf)
            burst = self._device.shape.burst
            if schedule.going and self._freed:
                # else whoever asks one thing after another loses a burst between two
                moment = HOLD * burst * self._pace.token
                self._changed.wait_for(lambda: len(schedule.waiting) >= self._freed, moment)
            self._freed = 0
            left = [self._calls[number] for number in self._left if number in self._calls]
            self._left.clear()
            over = not self._calls or time.monotonic() >= self._deadline
            schedule.turn(self._pace.places(burst))
        if over:
            self._end_all(CUT)
            return False
        began = time.monotonic()
        for under in left:
            self._end(under, "cancelled")
        places = 0
        while step := self._next():
            if isinstance(step, Begin):
                self._begin(step.job)
                continue
            with self._changed:
                chunks = [step, *self._schedule.beside(step)]
            self._read(chunks)
            places += len(chunks) * step.length
        if places:
            self._device.wait()
            self._pace.read(places, time.monotonic() - began)
        if schedule.going:
            started = time.monotonic()
            self._pace.added(self._burst(), time.monotonic() - started)
        self._busy += time.monotonic() - began
        return True

    def _next(self) -> Begin | Chunk | None:
        with self._changed:
            return self._schedule.next()

    def _begin(self, job: Job) -> None:
        if job.reused:
            self._device.take(job.reader, job.source, job.reused)
        under, length, most = self._calls[job.number], len(job.prompt), self._device.shape.most
        under.waited = time.monotonic() - under.asked
        if under.call.read:
            under.told = Likely(
                np.full(length, np.nan, np.float32),
                np.zeros((length, most), np.int32),
                np.full((length, most), np.nan, np.float32),
            )

    def _read(self, chunks: Sequence[Chunk]) -> None:
        """Reads chunks of as many prompts, of one length, and starts those texts that it can."""
        first, unders = chunks[0], [self._calls[chunk.job.number] for chunk in chunks]
        tokens = np.stack([_padded(c.job.prompt[c.begin : c.end], c.length) for c in chunks])
        begin = np.array([chunk.begin for chunk in chunks], np.int32)
        last = np.array([chunk.end - 1 for chunk in chunks], np.int32) - begin
        if first.job.anew:
            hidden: Sequence[jax.Array] = [self._score(unders[0], first, tokens[0], int(last[0]))]
        else:
            readers = [chunk.job.reader for chunk in chunks]
            hidden = self._device.read(readers, tokens, begin, last)
        for chunk, under, end in zip(chunks, unders, hidden, strict=True):
            if chunk.end == len(chunk.job.prompt):
                self._start(under, end)

    def _score(self, under: Under, chunk: Chunk, tokens: np.ndarray, last: int) -> jax.Array:
        """Reads a chunk and notes how likely its tokens were."""
        job, begin = chunk.job, chunk.begin
        targets = job.prompt[begin + 1 : chunk.end + 1]
        hidden, found = self._device.score(
            job.reader, tokens, begin, last, _padded(targets, chunk.length)
        )
        places = slice(begin + 1, begin + 1 + len(targets))
        for told, some in zip(jax.tree.leaves(under.told), jax.tree.leaves(found), strict=True):
            told[places] = np.asarray(some)[: len(targets)]
        return hidden

    def _start(self, under: Under, hidden: jax.Array) -> None:
        """A prompt is read: its first token is told, and its text goes on in its slot."""
        call, job, device, rows = under.call, under.job, self._device, self._rows
        with self._changed:
            self._counts.update(prompt=len(call.prompt), reused=job.reused)
        prompt: tuple[Said, ...] = ()
        if under.told is not None:
            if not np.isfinite(under.told.logprob[1:]).all():
                self._fail(under)
                return
            prompt = _said(call.prompt, under.told, call.likeliest or 0)
        news = News(prompt=prompt, reused=job.reused, waited=under.waited)
        if not call.new_tokens:
            self._end(under, "length", news)
            return
        wishes = idle_rows(1).wishes
        _set(wishes, 0, call)
        token, likely, held_row = device.first(hidden, call.prompt, wishes)
        if token == NO_TOKEN:
            self._fail(under, news)
            return
        device.insert(job.reader, held_row, job.slot, len(call.prompt))
        with self._changed:
            self._schedule.inserted(job)
        slot = job.slot
        rows.last[slot], rows.lengths[slot] = token, len(call.prompt)
        rows.left[slot], rows.drawn[slot] = call.new_tokens - 1, 1
        rows.asked[slot] = call.likeliest is not None
        _set(rows.wishes, slot, call)
        said = [] if token == END_OF_DOCUMENT else [token]
        self._add(under, said, _fetched(likely), token, news)

    def _burst(self) -> int:
        """Adds tokens to all texts; to how many most."""
        rows, steps = self._rows, self._device.shape.burst
        going = dict(self._schedule.going)
        new, likely = self._device.burst(rows)
        used = list[int]()
        for slot, job in going.items():
            under, most = self._calls[job.number], min(steps, int(rows.left[slot]))
            ids = new[slot, :most].tolist()
            ends = (i for i, token in enumerate(ids) if token in (END_OF_DOCUMENT, NO_TOKEN))
            end = next(ends, None)
            said, count = (ids, most) if end is None else (ids[:end], end + 1)
            with self._changed:
                self._schedule.wrote(slot, [int(rows.last[slot]), *said][:count])
            for array, more in ((rows.lengths, count), (rows.left, -count), (rows.drawn, count)):
                array[slot] += more
            rows.last[slot] = ids[count - 1]
            used.append(count)
            row = likely
            if rows.asked[slot]:
                row = Likely(likely.logprob[slot], likely.ids[slot], likely.logprobs[slot])
            self._add(under, said, row, ids[count - 1])
        with self._changed:
            self._counts.update(room=max(used) * self.slots, used=sum(used))
        return max(used)

    def _add(
        self, under: Under, said: list[int], likely: Likely, last: int, news: News = NO_NEWS
    ) -> None:
        """Tells what was added to a text, and whether it has ended. last: with what it has."""
        call, slot = under.call, under.job.slot
        with self._changed:
            self._counts["new"] += len(said)
        if call.likeliest is None:
            new = tuple(map(Said, said))
        else:
            new = _said(said, likely, call.likeliest)
        news = replace(news, new=new)
        if last == NO_TOKEN:
            self._fail(under, news)
        elif last == END_OF_DOCUMENT:
            self._end(under, "stop", news)
        elif not self._rows.left[slot]:
            self._end(under, "length", news)
        else:
            self._tell(under, news)

    def _fail(self, under: Under, news: News = NO_NEWS) -> None:
        """A call whose scores are no numbers; what was computed for it is of no use."""
        if under.job.reader >= 0:
            self._device.take(under.job.reader, 0, 0)
        else:
            self._device.clear(under.job.slot)
        self._end(under, "failed", replace(news, fault=NOT_FINITE))

    def _end(self, under: Under, why: str, news: News = NO_NEWS) -> None:
        job, rows = under.job, self._rows
        with self._changed:
            self._freed += job.slot >= 0
            if self._schedule.going.get(job.slot) is job:
                rows.left[job.slot] = rows.lengths[job.slot] = 0
                rows.asked[job.slot] = False
                _set(rows.wishes, job.slot, Call((), 0, temperature=0))
            self._schedule.ended(job, spoilt=why == "failed")
            del self._calls[job.number]
            self._counts.update(["ended", why])
        self._tell(under, replace(news, ended=why))

    def _end_all(self, fault: str) -> None:
        """Ends all calls as failed, and takes no more."""
        with self._changed:
            self._refusal = fault
            calls = list(self._calls.values())
            self._calls.clear()
            self._counts["failed"] += len(calls)
        for under in calls:
            self._tell(under, News(ended="failed", fault=fault))

    def _tell(self, under: Under, news: News) -> None:
        if under.tell is None:
            return
        try:
            under.tell(news)
        except Exception:  # whoever listened is gone
            under.tell = None
            self.cancel(under.job.number)


def _set(wishes: Wishes, row: int, call: Call) -> None:
    """Writes what a call wishes into a row."""
    wishes.temperature[row], wishes.top_k[row] = call.temperature, call.top_k
    wishes.top_p[row], wishes.repetition[row] = call.top_p, call.repetition_penalty
    wishes.presence[row], wishes.frequency[row] = call.presence_penalty, call.frequency_penalty
    wishes.seed[row], wishes.draw[row] = call.seed % 2**32, draw_of(call.prompt)


def _fetched(likely: Likely) -> Likely:
    """The same in numpy."""
    return Likely(*map(np.asarray, (likely.logprob, likely.ids, likely.logprobs)))


def _padded(tokens: Sequence[int], length: int) -> np.ndarray:
    """Tokens as int32 [length], filled up with the last one, or zeros where there is none."""
    padded = np.full(length, tokens[-1] if tokens else 0, np.int32)
    padded[: len(tokens)] = tokens
    return padded


def _said(tokens: Sequence[int], likely: Likely, most: int) -> tuple[Said, ...]:
    """Tokens with how likely they were, in numpy; the likeliest only where they are numbers."""
    found = []
    for place, token in enumerate(tokens):
        logprob = float(likely.logprob[place])
        best: tuple[tuple[int, float], ...] = ()
        if not math.isnan(logprob):
            ids, logprobs = likely.ids[place, :most], likely.logprobs[place, :most]
            best = tuple(zip(ids.tolist(), logprobs.tolist(), strict=True))
        found.append(Said(token, logprob, best))
    return tuple(found)
