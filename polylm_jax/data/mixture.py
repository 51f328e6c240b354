"""The curriculum as seqio sees it: a Task per source and one Mixture that carries the schedule.

Any seqio user can get the mixture's dataset and look at it with seqio's tools. Its rows come
in the order of the training feed, which reads the store without TensorFlow. This and the
cleaning pipeline are the only modules that import TensorFlow or seqio.
"""

from collections.abc import Sequence

import numpy as np
import seqio
import tensorflow as tf

from polylm_jax.data.curriculum import Curriculum, consumed, locate, visited
from polylm_jax.data.rows import Store

READ_AT_ONCE = 1024  # rows whose source is looked up in one call


def register(name: str, store: Store, curriculum: Curriculum, start: int = 0) -> seqio.Mixture:
    """Adds Tasks name_<source> and the Mixture `name` to seqio's registries.

    Examples have "tokens", int32 [length + 1], and "source", int32 [], an index into
    curriculum.sources. Split "train" has no end and begins with row `start` of the run;
    split "valid" is each source's held-out rows once, one source after the other.
    """
    tasks = [
        _add_task(f"{name}_{source.replace('-', '_')}", index, store, curriculum, start)
        for index, source in enumerate(curriculum.sources)
    ]

    def mix(
        datasets: Sequence[tf.data.Dataset], rates: Sequence[float], seed: int | None
    ) -> tf.data.Dataset:
        """seqio's sample_fn; the schedule decides, so rates and seed do not count."""
        # a mixture hands over its tasks in the order of their names
        order = np.argsort(tasks)
        rank = np.empty(len(tasks), np.int64)
        rank[order] = np.arange(len(tasks))
        if all(dataset.cardinality() != tf.data.INFINITE_CARDINALITY for dataset in datasets):
            return datasets[0] if len(datasets) == 1 else _one_after_the_other(datasets)

        def sources_of(chunk: tf.Tensor) -> tf.Tensor:
            first = start + int(chunk) * READ_AT_ONCE
            return rank[locate(curriculum, first, first + READ_AT_ONCE)[0]]

        choice = tf.data.Dataset.counter().map(
            lambda chunk: tf.ensure_shape(
                tf.numpy_function(sources_of, [chunk], tf.int64), [READ_AT_ONCE]
            )
        )
        return tf.data.Dataset.choose_from_datasets(datasets, choice.unbatch())

    return seqio.MixtureRegistry.add(name, [(task, 1.0) for task in tasks], sample_fn=mix)


def _one_after_the_other(datasets: Sequence[tf.data.Dataset]) -> tf.data.Dataset:
    joined = datasets[0]
    for dataset in datasets[1:]:
        joined = joined.concatenate(dataset)
    return joined


def _add_task(name: str, index: int, store: Store, curriculum: Curriculum, start: int) -> str:
    source, shape = curriculum.sources[index], [store.length + 1]
    seen = int(consumed(curriculum, start)[index])

    def train_row(visit: tf.Tensor) -> np.ndarray:
        return store.read(source, visited(curriculum, index, np.array([seen + int(visit)])))[0]

    def valid_row(row: tf.Tensor) -> np.ndarray:
        return store.read(source, np.array([int(row)]), "valid")[0]

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        rows = {
            "train": (tf.data.Dataset.counter(), train_row),
            "valid": (tf.data.Dataset.range(store.rows(source, "valid")), valid_row),
        }
        numbers, read = rows[split]
        return numbers.map(
            lambda number: {
                "tokens": tf.ensure_shape(tf.numpy_function(read, [number], tf.int32), shape),
                "source": tf.constant(index, tf.int32),
            }
        )

    ids = seqio.PassThroughVocabulary(2**31 - 1)
    seqio.TaskRegistry.add(
        name,
        # rows lie in the store already: a cache of them would be a second one
        seqio.FunctionDataSource(dataset, splits=("train", "valid"), caching_permitted=False),
        preprocessors=[],
        output_features={
            "tokens": seqio.Feature(ids, add_eos=False, dtype=tf.int32),
            "source": seqio.Feature(ids, add_eos=False, dtype=tf.int32, rank=0),
        },
    )
    return name
