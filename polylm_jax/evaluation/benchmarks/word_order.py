"""Word order: which of two sentences has two neighbours swapped; made from NTREX-128.

Words in between spaces, characters where a language writes none. What a small model can show: it
takes grammar, but no knowledge of the world.
"""

from hashlib import sha256

from polylm_jax.data.languages import LANGUAGES
from polylm_jax.evaluation.benchmarks.ntrex import ORIGIN
from polylm_jax.evaluation.items import Choice, Item
from polylm_jax.evaluation.tasks import Row, Task, both, lines

WITHOUT_SPACES = ("zh", "ja", "th")


def swapped(text: str, language: str, number: int) -> str | None:
    """The sentence with two neighbours swapped inside it; None if it has no two that differ."""
    mark = "" if language in WITHOUT_SPACES else " "
    parts = list(text) if language in WITHOUT_SPACES else text.split(" ")
    places = [
        at
        for at in range(1, len(parts) - 2)
        if parts[at] != parts[at + 1] and parts[at].isalpha() and parts[at + 1].isalpha()
    ]
    if not places:
        return None
    at = places[int.from_bytes(sha256(str(number).encode()).digest()[:4], "big") % len(places)]
    return mark.join([*parts[:at], parts[at + 1], parts[at], *parts[at + 2 :]])


def _items(rows: list[Row], language: str, protocol: str) -> list[Item]:
    items = []
    for number, row in enumerate(rows):
        other = swapped(row["text"], language, number)
        if other is not None:
            pair, gold = (Choice("", row["text"]), Choice("", other)), number % 2
            items.append(Item(number, pair[::-1] if gold else pair, gold, row))
    return items


TASK = Task(
    name="word_order",
    kind="choice",
    languages=tuple(LANGUAGES),
    key="word_order_{}",
    files=both("ntrex/{}.txt"),
    origin=ORIGIN,
    form={"text": str},
    items=_items,
    read=lines,
    chance=1 / 2,
    translated=True,
)
