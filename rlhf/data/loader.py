"""Batches out of rows that wait in memory: shuffled, cut by process, resumable at any step without replaying the ones before.

Which rows make up the batch of step k is a function of the seed and k alone (grain shuffles by an index permutation, anew in
every epoch), so a continued run sees the batches that the uninterrupted one would have seen. The rows are NumPy arrays, and
taking a batch is one gather: worker processes would only cost.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Int

from rlhf.data.batches import AnswerBatch, PairBatch, PromptBatch, SequenceBatch
from rlhf.errors import UserError

Rows = TypeVar("Rows", SequenceBatch, PairBatch, PromptBatch, AnswerBatch)


def batches(
    rows: Rows,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    shuffle: bool = True,
    epochs: int | None = None,
    own_rows: Int[np.ndarray, " own"] | None = None,
) -> Iterator[Rows]:
    """The batches from `start_step` on. What is left at the end of an epoch, less than a batch, is dropped.

    To see every row once (evaluation), fill the rows up first: `batches(fill_up(rows, size), size, shuffle=False, epochs=1)`.

    Args:
        rows: all examples along the leading axis of every array.
        batch_size: rows of the global batch, over all processes.
        seed: of the shuffle, 0 or more.
        start_step: the first batch to hand out, counted from the start of the first epoch.
        shuffle: False keeps the order of the rows.
        epochs: how often the rows are gone through; None goes on for ever.
        own_rows: which rows of every batch this process reads, of those of all processes; None for all.

    Raises:
        UserError: there are fewer rows than a batch.
    """
    import grain

    count = row_count(rows)
    if count < batch_size:
        raise UserError(
            f"batch_size is {batch_size}, but the data gives only {count} rows, so there is not one full batch",
            fix="lower batch_size (training.batch_size) or use more data",
        )
    indices = grain.MapDataset.range(count)
    if shuffle:
        indices = indices.shuffle(seed=_spread(seed))
    indices = indices.batch(batch_size, drop_remainder=True, batch_fn=np.asarray).repeat(epochs)
    mine = slice(None) if own_rows is None else own_rows
    return (take_rows(rows, indices[step][mine]) for step in range(start_step, len(indices)))


def _spread(seed: int) -> int:
    """A seed far from its neighbours'. Grain adds the epoch to it: seed 0 in its second epoch would equal seed 1 in its first."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


def row_count(rows: Rows) -> int:
    """Number of examples."""
    return jax.tree.leaves(rows)[0].shape[0]


def take_rows(rows: Rows, indices: np.ndarray) -> Rows:
    """The examples at these positions, as the same kind of batch."""
    return jax.tree.map(lambda array: array[indices], rows)


def fill_up(rows: Rows, multiple: int) -> Rows:
    """Appends filler rows until the number of rows is a multiple: copies of the first row that count for nothing.

    Fillers have an empty loss mask (sequences), weight 0 (pairs, answers) or index −1 (prompts). They are copies, not padding,
    because a row of nothing but padding has no position to attend to.
    """
    count = row_count(rows)
    missing = -count % multiple
    fillers = _without_effect(take_rows(rows, np.zeros(missing, np.int64)))
    return jax.tree.map(lambda array, filler: np.concatenate([array, filler]), rows, fillers)


def _without_effect(rows: Rows) -> Rows:
    match rows:
        case SequenceBatch():
            return replace(rows, loss_mask=np.zeros_like(rows.loss_mask))
        case PairBatch() | AnswerBatch():
            return replace(rows, weight=np.zeros_like(rows.weight))
        case PromptBatch():
            return replace(rows, index=np.full_like(rows.index, -1))
