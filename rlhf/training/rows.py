"""Training on rows that wait in memory: what the supervised stages have in common on the way from rows to `fit`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from rlhf.data.batches import AnswerBatch, PairBatch, SequenceBatch
from rlhf.data.loader import batches, fill_up, row_count
from rlhf.parallel.host_arrays import WHOLE_BATCHES, BatchLayout
from rlhf.tracking.tracker import FILES_ONLY, Tracker, TrackingConfig
from rlhf.training.loop import FitResult, LoopConfig, fit, resolve_steps
from rlhf.training.optimizer import OptimizerConfig
from rlhf.training.step import LossFunction

Rows = SequenceBatch | PairBatch | AnswerBatch


@jax.jit
def count_tokens(batch: Rows) -> Int[Array, ""]:
    """Tokens of a batch, over all processes, padding not counted."""
    return jnp.sum(batch.segment_ids != 0)


def fit_rows(
    model: nnx.Module,
    loss_function: LossFunction,
    rows: Rows,
    *,
    evaluation_rows: Rows | None = None,
    optimizer_config: OptimizerConfig,
    loop_config: LoopConfig,
    folder: Path,
    seed: int,
    fingerprint: Mapping[str, Any],
    tracking_config: TrackingConfig = FILES_ONLY,
    description: str = "training",
    after_evaluation: Callable[[nnx.Module, int, Tracker], None] | None = None,
    layout: BatchLayout = WHOLE_BATCHES,
    trainable: Any = nnx.Param,
) -> FitResult:
    """`fit` on shuffled batches of `rows`, evaluated on all of `evaluation_rows`; see there for what is not described here.

    Args:
        model: consumed, and in the end the trained one.
        loss_function: see `fit`; filler rows (empty loss mask, weight 0) must count for nothing in it.
        rows: training examples along the leading axis.
        evaluation_rows: held-out examples, or None.
        optimizer_config: AdamW and schedule.
        loop_config: length in steps or epochs, batch size, intervals.
        folder: the stage folder.
        seed: of the shuffle.
        fingerprint: what must be equal for a checkpoint to be continued.
        tracking_config: where metrics go besides the folder.
        description: shown on the progress bar.
        after_evaluation: called with (model, step, tracker) after each evaluation.
        layout: which rows of a batch this process reads, and where they are put.
        trainable: nnx filter of what is trained.

    Raises:
        Interrupted: a signal arrived; the state is saved.
        UserError: too few rows for a batch, and what `fit` raises.
    """
    size = loop_config.batch_size
    share = {"own_rows": layout.own_rows(size)}

    def evaluation_batches():
        return batches(fill_up(evaluation_rows, size), size, seed=seed, shuffle=False, epochs=1, **share)

    return fit(
        model,
        loss_function,
        lambda start_step: batches(rows, size, seed=seed, start_step=start_step, **share),
        total_steps=resolve_steps(loop_config, row_count(rows)),
        optimizer_config=optimizer_config,
        loop_config=loop_config,
        folder=folder,
        fingerprint=fingerprint,
        tracking_config=tracking_config,
        description=description,
        evaluation_batches=None if evaluation_rows is None else evaluation_batches,
        after_evaluation=after_evaluation,
        place_batch=layout.place,
        count_tokens=count_tokens,
        trainable=trainable,
    )
