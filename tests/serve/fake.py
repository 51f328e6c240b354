"""An engine without a model: it says what a script says, in threads, slots and bursts as ours."""

import math
import random
import threading
import time
from collections import deque
from dataclasses import dataclass, field

from polylm_jax.serve.calls import Busy, Counts, News, Said


def chance(token):
    """A log-probability that follows from the token."""
    return -0.25 * (1 + token % 7)


def said(token, likeliest):
    """A token as it is told; the first of the likeliest are the ids after it."""
    if likeliest is None:
        return Said(token)
    others = ((token + n, chance(token) - 0.5 * n) for n in range(1, likeliest + 1))
    return Said(token, chance(token), tuple(others))


@dataclass
class Seat:
    number: int
    call: object
    tell: object
    left: deque
    whole: bool  # whether </s> follows what is left
    asked: float = field(default_factory=time.monotonic)
    told: bool = False
    gone: bool = False
    dice: random.Random = field(default_factory=random.Random)


class FakeEngine:
    """say: function (call) -> ids of the answer, after which </s> comes. pause: seconds between two
    bursts. burst: most tokens in one."""

    def __init__(self, say, context=2048, slots=4, queue=64, pause=0.0, burst=5):
        self.context, self.slots = context, slots
        self.broken, self.fault = threading.Event(), ""
        self._say, self._queue, self._pause, self._burst = say, queue, pause, burst
        self._waiting, self._running = deque(), []
        self._lock, self.taken = threading.Condition(), 0
        self._done = dict.fromkeys(("prompt", "new", "reused", "cancelled", "failed"), 0)
        # the newest; a server that leaks is to be told from an engine that remembers
        self.calls, self.cancels, self._closing = deque(maxlen=99), deque(maxlen=99), False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def submit(self, call, tell):
        with self._lock:
            assert len(call.prompt) + call.new_tokens <= self.context
            assert call.prompt
            if self._closing or len(self._waiting) >= self._queue:
                raise Busy("Too many wait; ask again in a moment.", 1)
            ids = list(self._say(call))
            self.taken += 1
            self.calls.append(call)
            left = deque(ids[: call.new_tokens])
            seat = Seat(self.taken, call, tell, left, len(ids) < call.new_tokens)
            seat.dice.seed(call.seed)
            self._waiting.append(seat)
            self._lock.notify()
            return self.taken

    def cancel(self, number):
        with self._lock:
            self.cancels.append(number)
            for seat in [*self._waiting, *self._running]:
                if seat.number == number:
                    seat.gone = True
            self._lock.notify()

    def counts(self):
        done = self._done
        return Counts(
            self.slots,
            len(self._running),
            len(self._waiting),
            done["prompt"],
            done["new"],
            done["reused"],
            done["cancelled"],
            done["failed"],
            5,
        )

    def fail(self, fault):
        with self._lock:
            self.fault = fault
            self._lock.notify()

    def close(self, seconds):
        with self._lock:
            self._closing = True
            for seat in [*self._waiting, *self._running]:
                seat.gone = True
            self._lock.notify()
        self._thread.join(10)

    def _work(self):
        while True:
            with self._lock:
                while not (self._waiting or self._running or self._closing or self.fault):
                    self._lock.wait()
                if self.fault or (self._closing and not self._waiting and not self._running):
                    break
                gone = [seat for seat in [*self._waiting, *self._running] if seat.gone]
                for seat in gone:
                    (self._waiting if seat in self._waiting else self._running).remove(seat)
                    self._done["cancelled"] += 1
                while self._waiting and len(self._running) < self.slots:
                    self._running.append(self._waiting.popleft())
                running = list(self._running)
            for seat in gone:
                seat.tell(News(ended="cancelled"))
            for seat in running:
                self._burst_of(seat)
            time.sleep(self._pause)
        with self._lock:
            rest = [*self._waiting, *self._running] if self.fault else []
            self._waiting.clear()
            self._running.clear()
        for seat in rest:
            self._done["failed"] += 1
            seat.tell(News(ended="failed", fault=self.fault))
        if self.fault:
            self._closing = True
            self.broken.set()

    def _burst_of(self, seat):
        call, prompt, reused, waited = seat.call, (), 0, None
        if not seat.told:
            seat.told, reused = True, len(call.prompt) // 2
            waited = time.monotonic() - seat.asked
            self._done["prompt"] += len(call.prompt)
            self._done["reused"] += reused
            if call.read:
                first, *rest = call.prompt
                told = [said(token, call.likeliest or 0) for token in rest]
                prompt = (Said(first, math.nan), *told)
        count = min(len(seat.left), seat.dice.randint(1, self._burst))
        new = tuple(said(seat.left.popleft(), call.likeliest) for _ in range(count))
        self._done["new"] += count
        ended = "" if seat.left else "stop" if seat.whole else "length"
        if ended:
            with self._lock:
                self._running.remove(seat)
        if new or prompt or reused or ended:
            seat.tell(News(new, prompt, reused, waited, ended))
