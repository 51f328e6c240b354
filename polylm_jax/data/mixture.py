"""The curriculum as seqio sees it: a finite Task per source, and one Mixture in the run's order.

    register("polylm", store, curriculum, start=row)
    seqio.get_mixture_or_task("polylm").get_dataset()

A Task, here polylm_<source>, is the rows of one source once, in the store's order: seqio can
shard, shuffle and repeat it, and cache it with Beam. The Mixture does not draw from its Tasks,
because chance cannot keep a curriculum. It asks the training feed's `read_rows` for one row of
the run after the other, so that its order is the feed's and any start is a seek.

Examples have the feed's own "tokens", int32 [length + 1], and "source", int32 [], an index into
curriculum.sources; and decoder_input_tokens, decoder_target_tokens, decoder_loss_weights,
decoder_positions and decoder_segment_ids, int32 [length], which is what
seqio.PrePackedLMFeatureConverter wants. There are no "targets", so that no converter that takes
id 0 for padding can be used by mistake.

This and the cleaning pipeline are the only modules that import TensorFlow or seqio.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from polylm_jax.data.curriculum import Curriculum, consumed, share
from polylm_jax.data.feed import read_rows
from polylm_jax.data.rows import Store
from polylm_jax.errors import UserError

SPLITS = {"train": "train", "validation": "valid"}  # seqio's names and the store's
DECODER = tuple(f"decoder_{name}" for name in "input_tokens target_tokens".split())


def register(
    name: str, store: Store, curriculum: Curriculum, start: int = 0
) -> "CurriculumMixture":
    """Adds a Task name_<source> per source ("-" becomes "_") and the Mixture `name` to seqio.

    start: the row of the run that the Mixture begins with. Its rates are the shares there.
    Raises UserError if seqio knows one of the names, and then adds none.
    """
    names = [f"{name}_{source}".replace("-", "_") for source in curriculum.sources]
