"""Evaluation on held-out batches, exact however unequal the batches are."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
from flax import nnx

from rlhf.errors import UserError
from rlhf.tracking.tracker import Tracker
from rlhf.training.state import TrainState
from rlhf.training.step import LossFunction, make_evaluate_step

HELD_OUT_PREFIX = "held_out_"


def add_up(batch_sums: list[dict[str, tuple[Any, Any]]]) -> dict[str, float]:
    """Means over batches of {name: (sum, weight)}: the total sum over the total weight, in double precision.

    A metric without any weight has no mean and becomes NaN.
    """
    means = {}
    for name in batch_sums[0]:
        total = sum(float(sums[name][0]) for sums in batch_sums)
        weight = sum(float(sums[name][1]) for sums in batch_sums)
        means[name] = total / weight if weight else float("nan")
    return means


class HeldOutEvaluation:
    """Evaluates a train state; with no batches to evaluate on it does nothing.

    Args:
        graphdef: of the model.
        loss_function: the training loss; its metrics are evaluated too.
        batches: makes an iterable of held-out batches; None for no evaluation.
        place_batch: puts a batch on the devices.
        afterwards: called with (model, step, tracker) after each evaluation.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        loss_function: LossFunction,
        batches: Callable[[], Iterable[Any]] | None,
        place_batch: Callable[[Any], Any],
        afterwards: Callable[[nnx.Module, int, Tracker], None] | None,
    ):
        self._graphdef = graphdef
        self._evaluate_step = make_evaluate_step(graphdef, loss_function)
        self._batches = batches
        self._place_batch = place_batch
        self._afterwards = afterwards

    def __call__(self, state: TrainState, step: int, tracker: Tracker) -> dict[str, float]:
        """Evaluate, and return {"held_out_loss": …, "held_out_<metric>": …}; empty when there is nothing to evaluate on.

        Nothing is fetched from the device before it has been given the last batch.

        Raises:
            UserError: there are no batches.
        """
        if self._batches is None:
            return {}
        sums = jax.device_get([self._evaluate_step(state, self._place_batch(batch)) for batch in self._batches()])
        if not sums:
            raise UserError("there is no held-out batch to evaluate", fix="hold out more data or lower the batch size.")
        if self._afterwards is not None:
            self._afterwards(nnx.merge(self._graphdef, state.trainable, state.frozen), step, tracker)
        return {f"{HELD_OUT_PREFIX}{name}": value for name, value in add_up(sums).items()}
