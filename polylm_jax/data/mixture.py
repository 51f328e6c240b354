"""The curriculum as seqio sees it: a finite Task per source, and one Mixture in the run's order.

    register("polylm", store, curriculum, start=row)
    seqio.get_mixture_or_task("polylm").get_dataset()

A Task, such as polylm_de, is the rows of one source once, in the store's order; seqio can shard,
shuffle, repeat and cache it (a cache has Beam's order). The Mixture does not draw from its
Tasks, because chance cannot keep a curriculum: like the training feed it asks `locate` which
rows come next. So its order is the feed's, and to start at any row is a seek.

An example has the feed's own "tokens", int32 [length + 1], and "source", int32 [], an index into
curriculum.sources; and, cut from the tokens, what seqio.PrePackedLMFeatureConverter wants:
decoder_input_tokens, decoder_target_tokens, decoder_loss_weights (all 1), decoder_positions and
decoder_segment_ids (all 1: attention crosses documents), int32 [length]. There is no "targets",
so that a converter which takes id 0 for padding fails instead of dropping tokens.

This and the cleaning pipeline are the only modules that import TensorFlow or seqio.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from polylm_jax.data.curriculum import consumed, locate, share
from polylm_jax.data.rows import Store
from polylm_jax.data.schedule import Curriculum
from polylm_jax.errors import UserError

READ_AT_ONCE = 256  # rows
SPLITS = {"train": "train", "validation": "valid"}  # seqio's names for the store's splits

_IDS = seqio.PassThroughVocabulary(np.iinfo(np.int32).max)
_FEATURES = {"source": seqio.Feature(_IDS, add_eos=False, rank=0)} | {
    name: seqio.Feature(_IDS, add_eos=False)
    for name in ("tokens", *seqio.PrePackedLMFeatureConverter.BATCH_FEATURES)
}


def register(
    name: str, store: Store, curriculum: Curriculum, start: int = 0
) -> "CurriculumMixture":
    """Adds a Task <name>_<source> per source ("-" becomes "_") and the Mixture `name` to seqio.

    start: the row of the run that the Mixture begins with; its rates are the shares there.
    Raises UserError, with nothing added, if seqio has one of the names already.
    """
    if start < 0:
        raise UserError(f"start is {start}, but the first row of a run is row 0.")
    tasks = [f"{name}_{source.replace('-', '_')}" for source in curriculum.sources]
    known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    taken = [new for new in (name, *tasks) if new in known]
    if taken:
        raise UserError(f'seqio has a "{taken[0]}" already; register the rows under another name.')
    for index, task in enumerate(tasks):
        seqio.TaskRegistry.add(
            task,
            RowSource(store, curriculum.sources[index], index),
            _FEATURES,
            preprocessors=[seqio.CacheDatasetPlaceholder(), _with_decoder_features],
        )
    rates = share(curriculum, start).tolist()
    return seqio.MixtureRegistry.add(
        name,
        list(zip(tasks, rates, strict=True)),
        mixture_cls=CurriculumMixture,
        store=store,
        curriculum=curriculum,
        start=start,
    )


class RowSource(seqio.DataSource):
    """The rows of one source as examples of "tokens" and "source", the index given.

    Any number of shards can be asked for, each a run of neighbouring rows; those listed are as
    many as the store's files. Shuffling is left to the Task.
    """

    supports_arbitrary_sharding = True

    def __init__(self, store: Store, source: str, index: int):
        self._store, self._source, self._index = store, source, index
        rows = {split: store.rows(source, name) for split, name in SPLITS.items()}
        rows = {split: count for split, count in rows.items() if count}
        super().__init__(splits=rows, num_input_examples=rows)

    def list_shards(self, split: str) -> list[str]:
        files = self._store.manifest["sources"][self._source][SPLITS[split]]["shards"]
        parts = [self._part(split, index, len(files)) for index in range(len(files))]
        return [f"{self._source} {split} rows {part.start} to {part.stop - 1}" for part in parts]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = False,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **_: Any,
    ) -> tf.data.Dataset:
        shard = shard_info or seqio.ShardInfo(0, 1)
        part = self._part(split, shard.index, shard.num_shards)

        def read(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            tokens = self._store.read(self._source, rows, SPLITS[split])
            return tokens, np.full(len(rows), self._index, np.int32)

        return _examples(tf.data.Dataset.range(part.start, part.stop), read, self._store.length)

    def _part(self, split: str, index: int, shards: int) -> range:
        rows = self.num_input_examples(split)
        return range(rows * index // shards, rows * (index + 1) // shards)


class CurriculumMixture(seqio.Mixture):
    """The rows of the run from `start` on, in the order of the training feed."""

    def __init__(self, store: Store, curriculum: Curriculum, start: int, **mixture: Any):
        super().__init__(sample_fn=_one_after_the_other, **mixture)
        self._store, self._curriculum, self._start = store, curriculum, start

    def get_dataset(
        self,
        sequence_length: dict[str, int] | None = None,
        split: str = "train",
        use_cached: bool = False,
        shuffle: bool = False,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        num_epochs: int | None = None,
        **options: Any,
    ) -> tf.data.Dataset:
        """The split "train" without end, or the split "validation" once, Task after Task.

        shuffle, seed, and in training use_cached, have no influence: the curriculum decides.
        shard_info: shard i of k has every k-th row of the run, from the i-th on.
        num_epochs: training ends before the first source would begin one epoch more than these,
            counted from row 0 of the run. Without it, a schedule that refuses to repeat ends in
            an error of TensorFlow's, which holds ours, at the READ_AT_ONCE rows it falls in.
        """
        if split != "train":
            return super().get_dataset(
                sequence_length,
                split,
                use_cached,
                shuffle=False,
                shard_info=shard_info,
                num_epochs=num_epochs or 1,
                **options,
            )
        shard = shard_info or seqio.ShardInfo(0, 1)
        first = self._start + shard.index
        rows = tf.data.Dataset.counter(first, shard.num_shards)
        if num_epochs:
            end = _end_of_epochs(self._curriculum, num_epochs)
            rows = rows.take(len(range(first, end, shard.num_shards)))

        def read(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            located = locate(self._curriculum, int(rows[0]), int(rows[-1]) + 1)
            sources, places = (of_all[rows - rows[0]] for of_all in located)
            tokens = self._store.read_mixed(self._curriculum.sources, sources, places)
            return tokens, sources.astype(np.int32)

        examples = _with_decoder_features(_examples(rows, read, self._store.length))
        lengths = sequence_length if options.get("trim_output_features", True) else None
        return seqio.trim_dataset(examples, lengths, self.output_features)


def _examples(
    rows: tf.data.Dataset,
    read: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    length: int,
) -> tf.data.Dataset:
    def examples(some: tf.Tensor) -> dict[str, tf.Tensor]:
        tokens, source = tf.numpy_function(read, [some], (tf.int32, tf.int32))
        return {
            "tokens": tf.ensure_shape(tokens, [None, length + 1]),
            "source": tf.ensure_shape(source, [None]),
        }

    return rows.batch(READ_AT_ONCE).map(examples).unbatch()


def _with_decoder_features(dataset: tf.data.Dataset) -> tf.data.Dataset:
    def add(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        inputs, targets = example["tokens"][:-1], example["tokens"][1:]
        return example | {
            "decoder_input_tokens": inputs,
            "decoder_target_tokens": targets,
            "decoder_loss_weights": tf.ones_like(targets),
            "decoder_positions": tf.range(tf.size(inputs)),
            "decoder_segment_ids": tf.ones_like(inputs),
        }

    return dataset.map(add, num_parallel_calls=tf.data.AUTOTUNE)


def _one_after_the_other(
    datasets: Sequence[tf.data.Dataset], rates: Sequence[float], seed: int | None
) -> tf.data.Dataset:
    joined = datasets[0]
    for dataset in datasets[1:]:
        joined = joined.concatenate(dataset)
    return joined


def _end_of_epochs(curriculum: Curriculum, epochs: int) -> int:
    """Rows of the run before some source begins its epoch number `epochs`, counted from 0."""
    limits = epochs * curriculum.rows

    def beyond(row: int) -> bool:
        return bool((consumed(curriculum, row) > limits).any())

    return bisect_left(range(int(limits.sum()) + 1), True, key=beyond) - 1
