"""A run of self-instruct from start to end: whom to ask next, what it costs, what a person sees."""

import threading
import time
from collections.abc import Callable, Sequence

from polylm_jax.console import LiveLine, format_duration
from polylm_jax.errors import UserError
from polylm_jax.train.ends import RunEnded
from polylm_jax.tune.journal import Journal, Request, Spent, plus
from polylm_jax.tune.self_instruct import Language, Seeds, SelfInstruct
from polylm_jax.tune.writer import Desk, Stopped, Writer

Write = Callable[[Sequence[Request], Desk], None]


def run(languages: Sequence[Language], write: Write, till: "Till") -> None:
    """All rounds of all languages, one round of each at a time; their files at the end.

    However it ends, the files hold what the journal has. RunEnded where it was asked to stop.
    """
    try:
        while waiting := [request for language in languages for request in language.advance()]:
            till.kept = sum(len(language.story.kept()) for language in languages)
            write(waiting, till.desk)
    except Stopped:
        raise _stopped() from None
    finally:
        till.close()
        for language in languages:
            language.end()
            language.write()


def translate(seeds: Sequence[Seeds], write: Write, till: "Till") -> None:
    """The seeds of all languages that have none; their files at the end."""
    try:
        while waiting := [request for one in seeds for request in one.waiting()]:
            write(waiting, till.desk)
    except Stopped:
        raise _stopped() from None
    finally:
        till.close()
    for one in seeds:
        one.write()


def _stopped() -> RunEnded:
    return RunEnded(
        "stopped", "it was asked to stop; nothing is lost: the same command goes on from here."
    )


class Till:
    """Counts what is asked, answered and spent, shows it, and stops before too much is.

    journals: of each language. to_ask: requests that have no answer yet. kept: tasks kept so far,
    for the line.
    """

    def __init__(
        self,
        settings: SelfInstruct,
        writer: Writer,
        journals: dict[str, Journal],
        to_ask: int,
        stop: threading.Event,
    ) -> None:
        self._settings, self._writer, self._journals = settings, writer, journals
        self._to_ask, self._line = to_ask, LiveLine(seconds=10)
        self._under_way: set[str] = set()
        self._settled = threading.Condition()
        self._started, self._new = time.monotonic(), 0
        self.kept = 0
        self.desk = Desk(
            self._asked, self._unpaid, self._broke_off, self._answered, self._say, stop
        )
        if settings.most_usd and writer.usd((0, 0)) is None:
            raise UserError(
                "self_instruct.most_usd needs prices; give writer.usd_in and writer.usd_out, US "
                "dollars for a million tokens."
            )

    def spent(self) -> Spent:
        """By all languages."""
        return sum((journal.spent() for journal in self._journals.values()), Spent())

    def close(self) -> None:
        """The line stays as it is, and the journals take no more."""
        self._line.close()
        for journal in self._journals.values():
            journal.close()

    def _asked(self, request: Request) -> None:
        most = self._writer.most(request.prompt)
        with self._settled:
            while not self._fits(most):
                if not self._under_way:
                    raise UserError(self._no_more(most))
                # those under way seldom take the most that they may
                self._settled.wait(0.2)
                if self.desk.stop.is_set():
                    raise Stopped
            self._under_way.add(request.id)
            self._journals[request.language].asked(request, most)

    def _fits(self, most: tuple[int, int]) -> bool:
        spent = self.spent()
        usd = self._writer.usd(plus(plus(spent.known, spent.unsure), most))
        return not self._settings.most_usd or usd is None or usd <= self._settings.most_usd

    def _no_more(self, most: tuple[int, int]) -> str:
        spent = self.spent()
        unsure = ""
        if spent.unsure != (0, 0):
            unsure = (
                f", {usd_text(self._writer.usd(spent.unsure))} may have gone to requests that "
                "broke off or do not say what they took"
            )
        return (
            f"self_instruct.most_usd = {self._settings.most_usd:g} could be passed by the next "
            f"request: {usd_text(self._writer.usd(spent.known))} are spent{unsure}, and it may "
            f"cost {usd_text(self._writer.usd(most))}; nothing is lost: raise it to go on."
        )

    def _unpaid(self, request: Request) -> None:
        with self._settled:
            self._under_way.discard(request.id)
            self._journals[request.language].unpaid(request)
            self._settled.notify_all()

    def _broke_off(self, request: Request) -> None:
        with self._settled:
            self._under_way.discard(request.id)
            self._settled.notify_all()

    def _answered(self, request: Request, body: str) -> None:
        self._journals[request.language].answered(request, body)
        with self._settled:
            self._under_way.discard(request.id)
            self._new += self._journals[request.language].reply(request) is not None
            self._settled.notify_all()
            self._show(request)

    def _say(self, text: str) -> None:
        with self._settled:
            self._line.show(text)

    def _show(self, request: Request) -> None:
        spent = self.spent()
        left = self._to_ask - self._new
        seconds = (time.monotonic() - self._started) / max(1, self._new) * left
        where = f"round {request.round} of {self._settings.rounds}" if request.round else "seeds"
        parts = [
            where,
            request.language,
            f"{spent.answers:,} answered, {left:,} to ask",
            *([f"{self.kept:,} kept"] if request.round else []),
            cost_text(spent, self._writer, spent.answers - spent.silent + left),
            f"ETA {format_duration(seconds)}",
        ]
        self._line.show(" · ".join(parts), last=not left)


def usd_text(usd: float | None) -> str:
    """1.23 USD; a small sum with more places."""
    if usd is None:
        return "an unknown sum"
    return f"{usd:,.2f} USD" if usd >= 1 else f"{usd:.4f} USD"


def cost_text(spent: Spent, writer: Writer, of_answers: int = 0) -> str:
    """What answers have cost; unknown where prices or tokens are. of_answers: and so many will."""
    known = writer.usd(spent.known)
    if known is None:
        return f"{sum(spent.known):,} tokens, cost unknown without prices"
    if spent.silent == spent.answers:
        return "cost unknown" if spent.answers else usd_text(0.0)
    told = spent.answers - spent.silent
    ahead = f" of about {usd_text(known / told * of_answers)}" if of_answers > told else ""
    if spent.silent:
        return f"cost unknown, at least {usd_text(known)} ({spent.silent:,} answers do not say)"
    return usd_text(known) + ahead
