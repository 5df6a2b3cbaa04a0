"""The numbers of a run: fetched from the device in groups, so that steps are not waited for one by one."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from rlhf.errors import UserError
from rlhf.tracking.progress import ProgressBar
from rlhf.tracking.tracker import Tracker


@dataclasses.dataclass
class Progress:
    """What a run has come to, kept in every checkpoint so that a continued run can go on counting.

    Attributes:
        loss: training loss of the last step that was logged; None before the first.
        held_out_loss: held-out loss of the last evaluation; None without one.
        best_held_out_loss: lowest held-out loss after at least one step.
        best_step: the step where it was reached.
        tokens: tokens (or total loss weight) processed.
        seconds: time spent training, over all sessions.
        skipped_steps: updates that were skipped because of a loss or gradient that was not finite.
    """

    loss: float | None = None
    held_out_loss: float | None = None
    best_held_out_loss: float | None = None
    best_step: int | None = None
    tokens: float = 0
    seconds: float = 0.0
    skipped_steps: int = 0

    def note_evaluation(self, step: int, held_out_loss: float) -> bool:
        """Keep a held-out loss; true when it is the lowest so far. The untrained model, step 0, is no candidate."""
        self.held_out_loss = held_out_loss
        lowest = float("inf") if self.best_held_out_loss is None else self.best_held_out_loss
        if step == 0 or not held_out_loss < lowest:
            return False
        self.best_held_out_loss, self.best_step = held_out_loss, step
        return True


class StepLog:
    """Holds the metrics of steps on the device until `write`, then fetches them together and writes a line for each step.

    Args:
        tracker: where lines go.
        bar: shows the latest loss and the speed.
        progress: counts are added to it.
        max_skipped_steps: updates skipped in a row at which the run is given up.
    """

    def __init__(self, tracker: Tracker, bar: ProgressBar, progress: Progress, max_skipped_steps: int):
        self._tracker = tracker
        self._bar = bar
        self._progress = progress
        self._max_skipped_steps = max_skipped_steps
        self._pending: list[tuple[int, Mapping[str, jax.Array], jax.Array | float | None]] = []
        self._session_tokens = 0.0
        self._clock = time.monotonic()

    def add(self, step: int, metrics: Mapping[str, Any], tokens: jax.Array | float | None) -> None:
        """Take the metrics of a step without waiting for them; `tokens` None counts the loss's weight instead."""
        self._pending.append((step, metrics, tokens))
        self._bar.update(step)

    def write(self, evaluation: Mapping[str, float] | None = None) -> None:
        """Write the lines of all steps taken since the last call; `evaluation` is added to the last step's.

        Raises:
            UserError: too many updates in a row were skipped. The lines are written first.
        """
        fetched = jax.device_get(self._pending)
        self._pending = []
        if not fetched:
            return
        group_tokens = 0.0
        for step, metrics, tokens in fetched:
            group_tokens += float(metrics["weight"]) if tokens is None else float(tokens)
            self._progress.skipped_steps += bool(metrics["skipped"])
            self._progress.loss = float(metrics["loss"])
            is_last = step == fetched[-1][0]
            self._tracker.log(step, {**metrics, **(evaluation or {})} if is_last else metrics)
            if metrics["skipped"] >= self._max_skipped_steps:
                raise _not_finite(step, metrics)
        self._count(fetched[-1][0], len(fetched), group_tokens)

    def _count(self, step: int, steps: int, tokens: float) -> None:
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        self._progress.tokens += tokens
        self._progress.seconds += seconds
        self._session_tokens += tokens
        self._bar.update(step, figures={"loss": self._progress.loss}, tokens=round(self._session_tokens))
        self._tracker.log_timings(
            step, {"seconds_per_step": seconds / steps, "tokens_per_second": tokens / max(seconds, 1e-9)}
        )


def _not_finite(step: int, metrics: Mapping[str, np.ndarray]) -> UserError:
    what = "gradient" if np.isfinite(metrics["loss"]) else "loss"
    return UserError(
        f"training stopped at step {step}: the {what} was not finite (loss {metrics['loss']:.4g}, gradient norm "
        f"{metrics['grad_norm']:.4g}) and {int(metrics['skipped'])} updates in a row were skipped; "
        "no parameter has changed since, and the checkpoints so far are kept",
        fix="lower optimizer.learning_rate or lengthen optimizer.warmup_steps, set optimizer.clip_norm, "
        "or look for broken records in the data of these steps.",
    )
