"""What was read and said in talks, as ids, for the turns that follow.

What a text is encoded to need not be what was sampled: only with those ids does a prompt go on
from what an engine has read already.
"""

import bisect
import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from polylm_jax.data.tokenizer import EOS, Tokenizer
from polylm_jax.decode.chat import Segment, TextStream, prompt_ids

KEPT = 256  # answers that are remembered, more than an engine has slots for

# Stands for the </s> behind an answer; no text in UTF-8 has it.
ANSWER_ENDS = "\ud800"


@dataclass(frozen=True)
class Answered:
    """A prompt's text, the ids that it had, and those that were said to it."""

    tokenizer: Tokenizer
    prompt: str
    ids: Sequence[int]
    said: Sequence[int]

    @cached_property
    def _cuts(self) -> tuple[str, list[tuple[int, int]]]:
        """The whole text, and where it can be cut: so many characters are so many ids."""
        text, cuts = self.prompt, [(len(self.prompt), len(self.ids))]
        stream = TextStream(self.tokenizer, self.ids)
        for count, one in enumerate(self.said, len(self.ids) + 1):
            text += stream.push([one])
            if stream.whole:
                cuts.append((len(text), count))
        return text, cuts

    def shared(self, text: str) -> tuple[int, int]:
        """How much of a text that begins with the prompt is the same: in characters, in ids."""
        mine, cuts = self._cuts
        differs = lambda cut: not text.startswith(mine[: cut[0]])  # noqa: E731
        return cuts[bisect.bisect_left(cuts, True, key=differs) - 1]

    def first(self, count: int) -> list[int]:
        """So many of the ids."""
        return [*self.ids, *self.said][:count]


class Memory:
    """The newest answers of all talks; for any thread."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._answered = deque[Answered](maxlen=KEPT)

    def ids(self, prompt: Sequence[Segment]) -> list[int]:
        """`prompt_ids`, but those of the talk as far as its text is as it was read and said."""
        text, begins = _text(prompt)
        known = [
            one
            for one in tuple(self._answered)
            if len(one.prompt) in begins and text.startswith(one.prompt)
        ]
        shared = [one.shared(text) for one in known]
        if not shared:
            return prompt_ids(self._tokenizer, prompt)
        characters, count = most = max(shared)
        begun = known[shared.index(most)].first(count)
        first, *others = self._tokenizer.encode_inside(text[characters:].split(ANSWER_ENDS))
        return [*begun, *first, *itertools.chain(*([EOS, *ids] for ids in others))]

    def note(self, prompt: Sequence[Segment], ids: Sequence[int], said: Sequence[int]) -> None:
        """A prompt, with the ids that it was given, had this answer, be it cut off."""
        text, _ = _text(prompt)
        self._answered.append(Answered(self._tokenizer, text, tuple(ids), tuple(said)))


def _text(prompt: Sequence[Segment]) -> tuple[str, set[int]]:
    """A conversation's text, and where in it each answer begins, the awaited one, too."""
    parts, length, begins = list[str](), 0, set[int]()
    for segment in prompt:
        begins |= {length + place for place in ((0,) if segment.answer else segment.answers)}
        parts.append(segment.text + ANSWER_ENDS * segment.answer)
        length += len(parts[-1])
    return "".join(parts), begins | {length}
