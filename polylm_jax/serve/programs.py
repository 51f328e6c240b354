"""What an engine runs on the devices: its memory is taken, and all compiled, before it starts."""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from polylm_jax.chips import cores
from polylm_jax.decode import slots
from polylm_jax.decode.sampling import Wishes
from polylm_jax.decode.shares import side_by_side
from polylm_jax.decode.slots import Likely, Rows
from polylm_jax.model.decoder import Decoder
from polylm_jax.serve.schedule import JOINED

LOOKED_AT = (128, 192, 256, 384, 512)  # slots of a text that the narrowest bursts look at

# By a program's name: the function, its arguments, and the places of those that it uses up.
Wanted = dict[Any, tuple[Callable, tuple, tuple[int, ...]]]


@dataclass(frozen=True)
class Shape:
    """All sizes of an engine's programs.

    slots: texts at once; shares: into so many, of equal size, they are cut, each for a core of its
    own; rows: of so many a burst of a share is, the fewest that do, rising up to all of a share;
    context: tokens of each; burst: tokens added at once; widths: slots of a text that bursts look
    at, rising up to the context; readers: prompts read in turns; together: so many can be begun in
    one call, rising from 1; chunks: lengths in which they are read; most: of the likeliest that are
    told.
    """

    slots: int
    shares: int
    rows: Sequence[int]
    context: int
    burst: int
    widths: Sequence[int]
    readers: int
    together: Sequence[int]
    chunks: Sequence[int]
    most: int

    @property
    def reads(self) -> list[tuple[int, int, int]]:
        """How prompts are read: so many, chunks of a length, by looking at so many slots.

        Their beginnings have nothing else to look at.
        """
        alone = [(1, chunk, width) for chunk in self.chunks for width in {chunk, self.context}]
        joined = itertools.product(self.together[1:], self.chunks[-JOINED:])
        return [*alone, *((rows, chunk, chunk) for rows, chunk in joined)]


def widths_of(context: int, few: bool = False) -> list[int]:
    """Slots of a text that bursts look at. few: half as many, where each is compiled in a talk."""
    short = LOOKED_AT[:: 2 if few else 1]
    steps = [*short, *(LOOKED_AT[-1] << power for power in range(1, 24))]
    return [*(width for width in steps if width < context), context]


class Device:
    """The cache and the programs on it, functions of numpy arrays, for one thread at a time.

    What stays on the devices is always as much as when it is made.
    """

    def __init__(self, decoder: Decoder, params: Any, shape: Shape, ready: bool = True) -> None:
        """params: of `for_decoding`. ready: compiles all at once; else each when it is called."""
        self.shape, self._params = shape, params
        mine = shape.slots // shape.shares
        start = partial(slots.start, decoder, mine, shape.widths)
        cache, held, staged, hidden, held_row = jax.jit(partial(start, shape.readers))()
        others = (jax.jit(partial(start, 0))()[:2] for _ in range(shape.shares - 1))
        # of each share its cache, and what its texts hold; slot i is in share i % shares
        self._texts = [(cache, held), *others]
        self._staged, self._nothing_held = list(staged), held_row
        self._ends = slots.ends(cache)
        at, row, most = np.int32(0), staged[0], shape.most
        longest = np.zeros((1, shape.chunks[-1]), np.int32)
        prompt = np.zeros(shape.context, np.int32)
        one = idle_rows(1).wishes
        wanted: Wanted = {
            "score": (
                partial(slots.score, decoder, most),
                (params, row, longest, at, at, longest[0]),
                (1,),
            ),
            "first": (
                partial(slots.first, decoder, most),
                (params, hidden, prompt, at, one),
                (),
            ),
            "take": (partial(slots.take, decoder), (row, cache, at, at), (0,)),
        }
        inserts = (cache, held, row, held_row, at, at)
        for width in self._ends:
            wanted["insert", width] = partial(slots.insert, decoder, width), inserts, (0, 1)
        for rows, length, width in shape.reads:
            tokens, each = np.zeros((rows, length), np.int32), np.zeros(rows, np.int32)
            reads = (params, (row,) * rows, tokens, each, each)
            wanted["read", rows, length, width] = partial(slots.read, decoder, width), reads, (1,)
        for rows, width in itertools.product(shape.rows, shape.widths):
            adds = partial(slots.burst, decoder, width, shape.burst, most)
            places = None if rows == mine else np.arange(rows, dtype=np.int32)
            arguments = (params, cache, held, idle_rows(rows), places)
            wanted["burst", rows, width] = adds, arguments, (1, 2)
        self._run = _Compiled(wanted)
        if ready:
            self._run.all()
            self._run_all()

    def _run_all(self) -> None:
        """Runs all programs once and leaves nothing: at the first call a CPU's library makes its
        kernels, 0.1 to 0.4 s that texts would wait for."""
        shape = self.shape
        for rows, length, width in shape.reads:
            nothing = np.zeros((rows, length), np.int32)
            begin = np.full(rows, min(1, width - length), np.int32)
            last = np.zeros(rows, np.int32)
            hidden = self.read(range(rows), nothing, begin, last)
        self.score(0, nothing[0], 0, 0, nothing[0])
        _, _, held_row = self.first(hidden[0], [0], idle_rows(1).wishes)
        for length in self._ends:
            self.insert(0, held_row, 0, length)
        for count, width in itertools.product(shape.rows, shape.widths):
            rows_of, some = idle_rows(shape.slots), slice(count * shape.shares)
            rows_of.left[some], rows_of.lengths[some] = 1, width
            self.burst(rows_of)
        for slot in range(shape.slots):
            self.clear(slot)
        for reader in range(shape.readers):
            self.take(reader, 0, 0)

    def take(self, reader: int, slot: int, length: int) -> None:
        """A reader begins with the first tokens of a slot's text; with nothing if length is 0."""
        share, place = self._at(slot)
        self._staged[reader] = self._run["take"](
            self._staged[reader], self._texts[share][0], place, np.int32(length)
        )

    def read(
        self, readers: Sequence[int], tokens: np.ndarray, begin: np.ndarray, last: np.ndarray
    ) -> Sequence[jax.Array]:
        """Readers read a chunk each, int32 [readers, length]; the hidden states of the places
        `last`. Several only begin: see `Shape.reads`."""
        rows, length = tokens.shape
        width = self.shape.context if begin.any() else length
        staged, hidden = self._run["read", rows, length, width](
            self._params, tuple(self._staged[reader] for reader in readers), tokens, begin, last
        )
        for reader, row in zip(readers, staged, strict=True):
            self._staged[reader] = row
        return hidden

    def score(
        self, reader: int, tokens: np.ndarray, begin: int, last: int, targets: np.ndarray
    ) -> tuple[jax.Array, Likely]:
        """The same with the longest chunk, and how likely the targets were."""
        places = np.int32(begin), np.int32(last)
        self._staged[reader], hidden, likely = self._run["score"](
            self._params, self._staged[reader], tokens[None], *places, targets
        )
        return hidden, likely

    def first(
        self, hidden: jax.Array, prompt: Sequence[int], wishes: Wishes
    ) -> tuple[int, Likely, jax.Array]:
        """The token after a prompt, how likely it was, and what the text holds, for `insert`."""
        tokens = np.zeros(self.shape.context, np.int32)
        tokens[: len(prompt)] = prompt
        token, likely, held_row = self._run["first"](
            self._params, hidden, tokens, np.int32(len(prompt)), wishes
        )
        return int(np.asarray(token)[0]), likely, held_row

    def insert(self, reader: int, held_row: jax.Array, slot: int, length: int) -> None:
        """Puts what a reader has read, `length` tokens, into a slot, and little behind them."""
        width = next(width for width in self._ends if width >= length)
        share, place = self._at(slot)
        self._texts[share] = self._run["insert", width](
            *self._texts[share], self._staged[reader], held_row, place, np.int32(length)
        )

    def clear(self, slot: int) -> None:
        """Leaves nothing in a slot: what is no number would reach the next text there."""
        share, place = self._at(slot)
        self._texts[share] = self._run["insert", self.shape.context](
            *self._texts[share], self._staged[0], self._nothing_held, place, np.int32(0)
        )

    def _at(self, slot: int) -> tuple[int, np.int32]:
        """The share in which a slot is, and its place there."""
        place, share = divmod(slot, self.shape.shares)
        return share, np.int32(place)

    def wait(self) -> None:
        """Returns when all that was begun is done."""
        jax.block_until_ready((self._staged, self._texts))

    def burst(self, rows: Rows) -> tuple[np.ndarray, Likely]:
        """Adds tokens to all texts, int32 [slots, burst], and how likely each was, in numpy."""
        every = self.shape.shares
        going = sorted({int(slot) % every for slot in np.flatnonzero(rows.left)})
        found = side_by_side(lambda share: self._burst(share, rows), going)

        def of_all(*parts: np.ndarray) -> np.ndarray:
            whole = np.zeros((self.shape.slots, *parts[0].shape[1:]), parts[0].dtype)
            for (mine, _), part in zip(found, parts, strict=True):
                whole[mine] = part
            return whole

        new, likely = jax.tree.map(of_all, *(told for _, told in found))
        return new, likely

    def _burst(self, share: int, rows: Rows) -> tuple[np.ndarray, tuple[np.ndarray, Likely]]:
        """The slots of a share that were added to, and what `burst` tells of them."""
        mine = np.arange(share, self.shape.slots, self.shape.shares)
        lengths, left = rows.lengths[mine], rows.left[mine]
        width = next(width for width in self.shape.widths if width >= lengths.max())
        count = next(count for count in self.shape.rows if count >= (left > 0).sum())
        places: np.ndarray | None = None
        if count < len(mine):
            # those that go on first
            places = np.argsort(left == 0, kind="stable")[:count].astype(np.int32)
            mine = mine[places]
        some = jax.tree.map(lambda x: x[mine], rows)
        cache, held, *found = self._run["burst", count, width](
            self._params, *self._texts[share], some, places
        )
        self._texts[share] = cache, held
        new, likely = jax.tree.map(np.asarray, found)
        return mine, (new, likely)


class _Compiled(dict):
    """Compiled programs by their names."""

    def __init__(self, wanted: Wanted) -> None:
        super().__init__()
        self._wanted = {
            name: (function, jax.tree.map(_like, arguments), used)
            for name, (function, arguments, used) in wanted.items()
        }

    def __missing__(self, name: Any) -> Callable:
        self[name] = self._lowered(name).compile()
        return self[name]

    def all(self) -> None:
        """Compiles all, as many at a time as there are cores."""
        lowered = {name: self._lowered(name) for name in self._wanted}
        with ThreadPoolExecutor(cores()) as threads:
            compiled = threads.map(lambda program: program.compile(), lowered.values())
            self.update(zip(lowered, compiled, strict=True))

    def _lowered(self, name: Any) -> Any:
        function, arguments, used = self._wanted[name]
        # what is used up makes room for what comes, be it not looked at
        return jax.jit(function, donate_argnums=used, keep_unused=True).lower(*arguments)


def _like(x: Any) -> Any:
    """An array's shape and how it is laid out on the mesh."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))


def idle_rows(slots: int) -> Rows:
    """Rows where nothing goes on, in numpy."""

    def full(value: float, dtype: Any = np.float32) -> np.ndarray:
        return np.full(slots, value, dtype)

    wishes = Wishes(
        temperature=full(0),
        top_k=full(0, np.int32),
        top_p=full(1),
        repetition=full(1),
        presence=full(0),
        frequency=full(0),
        seed=full(0, np.uint32),
        draw=full(0, np.uint32),
    )
    last, lengths, left, drawn = (full(0, np.int32) for _ in range(4))
    return Rows(last, lengths, left, drawn, full(0, bool), wishes)
