"""Who reads, who goes on, in which slot and after whose beginning: decided here, without a device.

A call waits; then it has a slot for its text and a reader that reads its prompt beside the cache,
a chunk at a time; then its text goes on in the slot until it ends. What a slot holds stays there
when its text has ended, and a prompt that begins alike is not read again so far.
"""

import bisect
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

READERS = 4  # prompts that are read in turns
FEWEST = 16  # tokens of the smallest chunk
JOINED = 2  # lengths of chunks, the longest, that are read together; of short ones nothing is won
WORTH = 8  # tokens of a beginning; fewer are read again sooner than copied
IDLE = 2  # slots that, idle, let as many prompt tokens more be read in a turn
LONGER = 2  # bursts' time in which prompts may be read between two bursts
# Of the places read in that time, those of one prompt: where it is long, a chunk that is no
# beginning takes twice as long, and so does the burst that follows, for they look at more.
ALONE = 1 / 8
SMOOTH = 4  # times that were seen of which a mean is mostly made


@dataclass(eq=False)
class Job:
    """A call and how far it is.

    anew: its prompt is read from the beginning. slot: where its text is or will be, -1 before.
    reader: who reads it, -1 before and after. source: the slot whose first `reused` tokens it
    begins with. known: tokens of the prompt that are read. turned: places of this turn's chunks.
    """

    number: int
    prompt: Sequence[int]
    anew: bool = False
    slot: int = -1
    reader: int = -1
    source: int = 0
    reused: int = 0
    known: int = 0
    turned: int = 0


@dataclass(frozen=True)
class Begin:
    """A job has got its slot and its reader, which takes what is reused."""

    job: Job


@dataclass(frozen=True)
class Chunk:
    """A part of a job's prompt is read: the tokens from `begin` to `end`, in `length` places."""

    job: Job
    begin: int
    end: int
    length: int


@dataclass
class Pace:
    """Seconds that a place of a prompt and a token of all texts take, as far as was seen."""

    place: float = 0.0
    token: float = 0.0

    def read(self, places: int, seconds: float) -> None:
        """So many places of prompts were read in so many seconds."""
        self.place = _mean(self.place, seconds / places)

    def added(self, tokens: int, seconds: float) -> None:
        """A burst added so many tokens to the texts."""
        self.token = _mean(self.token, seconds / tokens)

    def places(self, burst: int) -> float:
        """Places that are read while others wait as long as LONGER bursts take; 0 if not known."""
        return LONGER * burst * self.token / self.place if self.place else 0


def _mean(before: float, seen: float) -> float:
    return before + (seen - before) / SMOOTH if before else seen


@dataclass
class Schedule:
    """All calls that have not ended, and what the slots hold.

    chunks: lengths in which prompts are read, rising. prompt_tokens: see `Serving`. together: so
    many prompts can be begun in one call, rising from 1.
    waiting, reading: in the order in which they come up; going: by their slots.
    held: tokens of each slot whose keys and values are in the cache.
    """

    slots: int
    context: int
    chunks: Sequence[int]
    prompt_tokens: int
    together: Sequence[int] = (1,)
    waiting: deque[Job] = field(default_factory=deque)
    reading: deque[Job] = field(default_factory=deque)
    going: dict[int, Job] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.readers = min(READERS, self.slots)
        self.held: list[list[int]] = [[] for _ in range(self.slots)]
        self._left = list(range(self.slots))  # slots, the longest unused first
        self.turn()

    def turn(self, places: float = math.inf) -> None:
        """A new turn begins, between two bursts. places: see `Pace`; one chunk is always read."""
        self._spent = 0
        self._most = min(self.prompt_tokens, places)
        self._alone = min(self.prompt_tokens, places * ALONE)
        for job in self.reading:
            job.turned = 0

    def next(self) -> Begin | Chunk | None:
        """What is to be done before the next burst; asked again when that is done, until None.

        A job whose last chunk was read is to be given to `inserted` or `ended` before.
        """
        return self._begin() or self._chunk()

    def beside(self, chunk: Chunk) -> list[Chunk]:
        """What is read in one call with a chunk that was given: others' beginnings, as long."""
        least = self.chunks[-JOINED:][0]
        alone = chunk.begin or chunk.job.anew or chunk.length < least
        if alone or (self.going and chunk.length > self._most):
            return []
        found = list[Chunk]()
        for job in self.reading:
            mine = chunk_of(job, self.chunks, self.context)
            begins = not (job.known or job.anew or job is chunk.job)
            if begins and least <= mine.length <= chunk.length:
                found.append(replace(mine, length=chunk.length))
        room = max(0, self.allowance - self._spent)
        fits = 1 + min(len(found), room / chunk.length)
        count = max(count for count in self.together if count <= fits)
        return [self._given(other) for other in found[: count - 1]]

    @property
    def allowance(self) -> float:
        """Prompt tokens of a turn: as many again for each few slots that are idle."""
        idle = self.slots - len(self.going) - len(self.reading)
        return self._most * (1 + idle / IDLE) if self.going else math.inf

    def inserted(self, job: Job) -> None:
        """The prompt that a job has read is in its slot, and its text goes on."""
        self.reading.remove(job)
        job.reader = -1
        self.going[job.slot] = job
        self.held[job.slot] = list(job.prompt)

    def wrote(self, slot: int, tokens: Iterable[int]) -> None:
        """A burst has written so many more of a slot's text."""
        self.held[slot] += tokens

    def ended(self, job: Job, spoilt: bool = False) -> None:
        """A job is over, wherever it was. spoilt: what its slot holds is of no use."""
        if job in self.waiting:
            self.waiting.remove(job)
        elif job in self.reading:
            self.reading.remove(job)
        else:
            del self.going[job.slot]
            if spoilt:
                self.held[job.slot] = []
            self._left.remove(job.slot)
            self._left.append(job.slot)

    def _begin(self) -> Begin | None:
        """The first that waits, if there are a slot and a reader for it.

        It waits, too, while another reads what it begins with: so the same prompt, asked several
        times at once, is read once.
        """
        busy = {*self.going, *(job.slot for job in self.reading)}
        free = [slot for slot in self._left if slot not in busy]
        readers = set(range(self.readers)) - {job.reader for job in self.reading}
        if not (self.waiting and free and readers):
            return None
        job = self.waiting[0]
        if not job.anew:
            shared = [_shared(job.prompt, held) for held in self.held]
            # of the same length, one that is free: its text goes on where it is
            job.source = max(range(self.slots), key=lambda s: (shared[s], s not in busy))
            most = shared[job.source]
            if any(_shared(job.prompt, other.prompt) >= max(WORTH, most + 1)
                   for other in self.reading):  # fmt: skip
                return None  # more of it is just being read
            job.known = job.reused = most if most >= WORTH else 0
        self.waiting.popleft()
        # what begins otherwise is kept for its own next turn, if it is most of what is there
        mine = job.source in free and 2 * job.reused >= len(self.held[job.source]) > 0
        job.slot, job.reader = job.source if mine else free[0], min(readers)
        self.reading.append(job)
        return Begin(job)

    def _chunk(self) -> Chunk | None:
        """The next part of a prompt, of those that read in turns, if the turn has room for it."""
        for job in self.reading:
            # what is told of each token of a prompt comes in one length
            chunk = chunk_of(job, self.chunks[-1:] if job.anew else self.chunks, self.context)
            if job.turned and job.turned + chunk.length > self._alone:
                continue
            if self._spent and self._spent + chunk.length > self.allowance:
                return None
            return self._given(chunk)
        return None

    def _given(self, chunk: Chunk) -> Chunk:
        job = chunk.job
        self.reading.remove(job)
        self.reading.append(job)
        if self.going:
            self._spent += chunk.length
            job.turned += chunk.length
        job.known = chunk.end
        return chunk


def chunks_of(longest: int, prompt_tokens: int, context: int) -> list[int]:
    """Lengths in which prompts are read: powers of two up to the longest that may be."""
    most = min(longest, prompt_tokens, context).bit_length() - 1
    return [1 << power for power in range(min(FEWEST.bit_length() - 1, most), most + 1)]


def chunk_of(job: Job, chunks: Sequence[int], context: int) -> Chunk:
    """The next part of a prompt: the longest, or the shortest that holds what is left.

    So the parts are the same whatever else is read. At the cache's end some is read again.
    """
    left = len(job.prompt) - job.known
    length = next((chunk for chunk in chunks if chunk >= left), chunks[-1])
    begin = min(job.known, context - length)
    return Chunk(job, begin, min(len(job.prompt), begin + length), length)


def _shared(prompt: Sequence[int], held: Sequence[int]) -> int:
    """Tokens with which both begin; at least one of the prompt is left to be read."""
    most = min(len(prompt) - 1, len(held))
    whole, other = list(prompt[:most]), list(held[:most])
    if whole == other:
        return most
    if whole[:WORTH] != other[:WORTH]:
        return 0
    return bisect.bisect_left(range(most), True, key=lambda n: whole[: n + 1] != other[: n + 1])
