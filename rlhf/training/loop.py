"""The one training loop of all supervised stages: step, log, evaluate, save, and go on after an interruption.

A run is a function of its configuration and data alone. Interrupted at any step and continued by the same call, it passes
through the same parameters, bit for bit, and leaves the same metrics.jsonl as a run that was never interrupted.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
from flax import nnx
from jaxtyping import Array, Int

from rlhf.errors import UserError, require_positive
from rlhf.tracking.console import say
from rlhf.tracking.progress import ProgressBar
from rlhf.tracking.tracker import FILES_ONLY, Tracker, TrackingConfig
from rlhf.training.checkpoint import Checkpointer
from rlhf.training.compilations import CompilationCounter
from rlhf.training.held_out import HeldOutEvaluation
from rlhf.training.optimizer import OptimizerConfig, make_optimizer
from rlhf.training.signals import Interrupted, SignalWatch
from rlhf.training.state import TrainState, abstract_like, create_train_state
from rlhf.training.step import LossFunction, TrainStep
from rlhf.training.step_log import Progress, StepLog

Batch = Any
PlaceBatch = Callable[[Batch], Batch]


@dataclass(frozen=True)
class LoopConfig:
    """How long to train, and how often to look, save and log.

    Attributes:
        steps: optimizer steps; give this or epochs.
        epochs: passes over the training data; give this or steps.
        batch_size: rows of a step, over all devices.
        micro_batches: parts of a batch that are computed one after the other to save memory; the result is the same.
        evaluate_every: steps between evaluations; null evaluates before the first step and after the last only.
        checkpoint_every: steps between checkpoints; null saves after the last step, when a held-out loss is the best so far,
            and when interrupted.
        log_every: steps between fetches from the device; every step is logged all the same.
        max_skipped_steps: updates skipped in a row, because the loss or gradient was not finite, at which training gives up.
        keep_checkpoints: newest checkpoints to keep, besides the best.
        select: which parameters are returned: those with the lowest held-out loss, or the last.
    """

    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 32
    micro_batches: int = 1
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    log_every: int = 10
    max_skipped_steps: int = 5
    keep_checkpoints: int = 2
    select: Literal["best", "last"] = "best"

    def __post_init__(self):
        require_positive(
            self, "batch_size", "micro_batches", "log_every", "max_skipped_steps", "keep_checkpoints", section="loop."
        )
        require_positive(self, "steps", "epochs", "evaluate_every", "checkpoint_every", section="loop.")
        if self.batch_size % self.micro_batches:
            raise UserError(
                f"loop.batch_size ({self.batch_size}) is not a multiple of loop.micro_batches ({self.micro_batches})",
                fix="choose a batch size that is.",
            )


def resolve_steps(config: LoopConfig, examples: int) -> int:
    """Optimizer steps of a run over `examples` training rows; an epoch is examples // batch_size steps.

    Raises:
        UserError: both or none of steps and epochs are given, or there are too few rows for one batch.
    """
    if (config.steps is None) == (config.epochs is None):
        found = "neither" if config.steps is None else f"steps = {config.steps} and epochs = {config.epochs}"
        raise UserError(
            f"loop: give either steps or epochs, and not both; found {found}",
            fix="set loop.steps or loop.epochs to a number, and the other to null.",
        )
    if examples < config.batch_size:
        raise UserError(
            f"loop.batch_size is {config.batch_size}, but there are only {examples} training rows",
            fix="lower loop.batch_size or use more data.",
        )
    if config.steps is not None:
        return config.steps
    return max(1, round(config.epochs * (examples // config.batch_size)))


@dataclass(frozen=True)
class FitResult:
    """A finished run.

    Attributes:
        model: the selected parameters; the same object that was passed to `fit`.
        summary: steps, selected_step, losses (loss, held_out_loss, best_held_out_loss, best_step), skipped_steps, tokens,
            seconds, tokens_per_second, compilations.
    """

    model: nnx.Module
    summary: dict[str, Any]


def fit(
    model: nnx.Module,
    loss_function: LossFunction,
    batches_from: Callable[[int], Iterator[Batch]],
    *,
    total_steps: int,
    optimizer_config: OptimizerConfig,
    loop_config: LoopConfig,
    folder: Path,
    fingerprint: Mapping[str, Any],
    tracking_config: TrackingConfig = FILES_ONLY,
    description: str = "training",
    evaluation_batches: Callable[[], Iterable[Batch]] | None = None,
    after_evaluation: Callable[[nnx.Module, int, Tracker], None] | None = None,
    place_batch: PlaceBatch | None = None,
    count_tokens: Callable[[Batch], Int[Array, ""] | int] | None = None,
    trainable: Any = nnx.Param,
) -> FitResult:
    """Train a model, or continue training it from the latest checkpoint in `folder`.

    Args:
        model: consumed: its trained arrays are donated to the first step, and when `fit` returns it holds the selected ones.
            Its other state is never changed. On a mesh, shard it before.
        loss_function: (model, batch) → (loss sum, weight, {metric: (sum, weight)}), pure.
        batches_from: start step → iterator of the batches of steps start, start + 1, …; the batch of a step may depend on
            nothing but the step, or a continued run is not the same run.
        total_steps: steps of the whole run, which the learning-rate schedule is laid over.
        optimizer_config: AdamW and schedule.
        loop_config: intervals and selection; `steps`, `epochs` and `batch_size` are for the caller, see `resolve_steps`.
        folder: the stage folder: metrics.jsonl, timings.jsonl, checkpoints/.
        fingerprint: what must be equal for a checkpoint to be continued, normally the resolved configuration without the output
            folder and tracking; wandb shows it as the run's configuration.
        tracking_config: where metrics go besides the folder.
        description: shown on the progress bar.
        evaluation_batches: makes an iterable of held-out batches; called at each evaluation.
        after_evaluation: called with (model, step, tracker) after each evaluation, for example to sample completions into a
            table; it may not keep the model's arrays.
        place_batch: puts a batch on the devices, for example sharded over a mesh; None leaves that to jit.
        count_tokens: tokens of a batch on the devices, for the speed; None counts the loss's weight.
        trainable: nnx filter of what is trained.

    Returns:
        The model with the selected parameters, and the summary.

    Raises:
        Interrupted: SIGTERM or SIGINT arrived; the state is saved.
        UserError: the checkpoint is of another configuration, too many updates in a row were skipped, the data ended early, or
            the disk is full.
    """
    optimizer = make_optimizer(optimizer_config, total_steps)
    graphdef, state = create_train_state(model, optimizer, trainable)
    train_step = TrainStep(graphdef, loss_function, optimizer, loop_config.micro_batches)
    place = place_batch or (lambda batch: batch)
    evaluate = HeldOutEvaluation(graphdef, loss_function, evaluation_batches, place, after_evaluation)
    identity = {"total_steps": total_steps, "optimizer": dataclasses.asdict(optimizer_config), **fingerprint}

    with contextlib.ExitStack() as opened:
        compilations = opened.enter_context(CompilationCounter())
        checkpoints = opened.enter_context(
            Checkpointer(Path(folder) / "checkpoints", keep=loop_config.keep_checkpoints, fingerprint=identity)
        )
        state, start, progress = _continue_or_begin(checkpoints, state)
        signals = opened.enter_context(SignalWatch())
        tracker = opened.enter_context(Tracker(tracking_config, folder, identity, resume_step=start))
        bar = opened.enter_context(ProgressBar(description, total_steps, start=start))
        log = StepLog(tracker, bar, progress, loop_config.max_skipped_steps)

        if start == 0:
            _log_untrained(evaluate(state, 0, tracker), progress, tracker)
        for step, batch in _numbered(batches_from, start, total_steps):
            batch = place(batch)
            state, metrics = train_step(state, batch)
            log.add(step, metrics, None if count_tokens is None else count_tokens(batch))

            is_last = step == total_steps
            evaluation = evaluate(state, step, tracker) if is_last or _is_due(step, loop_config.evaluate_every) else {}
            is_best = bool(evaluation) and progress.note_evaluation(step, evaluation["held_out_loss"])
            stopped_by = signals.agreed(synchronize=_is_due(step, loop_config.log_every))
            is_saved = is_last or is_best or stopped_by or _is_due(step, loop_config.checkpoint_every)

            if is_saved or evaluation or _is_due(step, loop_config.log_every):
                log.write(evaluation)
            if is_saved:
                checkpoints.save(step, _without_frozen(state), dataclasses.asdict(progress), best=is_best)
            if stopped_by:
                checkpoints.wait()
                raise Interrupted(stopped_by, step)

        checkpoints.wait()
        state, selected_step = _select(loop_config, checkpoints, state, progress, total_steps)
        summary = _summarize(progress, total_steps, selected_step, compilations)
        tracker.summarize(summary)

    nnx.update(model, state.trainable)
    return FitResult(model, summary)


def _continue_or_begin(checkpoints: Checkpointer, state: TrainState) -> tuple[TrainState, int, Progress]:
    if not checkpoints.steps():
        return state, 0, Progress()
    example = abstract_like(_without_frozen(state))
    # The fresh state is given up before the saved one is read, so that continuing needs no more memory than beginning.
    for leaf in jax.tree.leaves(_without_frozen(state)):
        leaf.delete()
    saved, step, metadata = checkpoints.restore_latest(example)
    say(f"Continuing from step {step} ({checkpoints.folder}).")
    return dataclasses.replace(saved, frozen=state.frozen), step, Progress(**metadata)


def _log_untrained(evaluation: Mapping[str, float], progress: Progress, tracker: Tracker) -> None:
    if evaluation:
        progress.note_evaluation(0, evaluation["held_out_loss"])
        tracker.log(0, evaluation)


def _numbered(
    batches_from: Callable[[int], Iterator[Batch]], start: int, total_steps: int
) -> Iterator[tuple[int, Batch]]:
    """(steps done after it, batch) for each step that is left; checks that the data lasts."""
    batches = batches_from(start) if start < total_steps else iter(())
    for step in range(start + 1, total_steps + 1):
        batch = next(batches, None)
        if batch is None:
            raise UserError(
                f"the training data ended before step {step} of {total_steps}",
                fix="repeat the data for more epochs or train for fewer steps.",
            )
        yield step, batch


def _select(
    config: LoopConfig, checkpoints: Checkpointer, state: TrainState, progress: Progress, total_steps: int
) -> tuple[TrainState, int]:
    best = progress.best_step
    if config.select == "last" or best is None or best == total_steps:
        return state, total_steps
    say(f"Selecting the parameters of step {best}, which have the lowest held-out loss.")
    saved, _ = checkpoints.restore(best, _without_frozen(state))
    return dataclasses.replace(saved, frozen=state.frozen), best


def _without_frozen(state: TrainState) -> TrainState:
    return dataclasses.replace(state, frozen=None)


def _is_due(step: int, interval: int | None) -> bool:
    return interval is not None and step % interval == 0


def _summarize(
    progress: Progress, total_steps: int, selected_step: int, compilations: CompilationCounter
) -> dict[str, Any]:
    return {
        "steps": total_steps,
        "selected_step": selected_step,
        **dataclasses.asdict(progress),
        "tokens_per_second": progress.tokens / progress.seconds if progress.seconds else None,
        **compilations.summary(),
    }
