"""A supervised stage's training: rows in memory to a fitted model, on the stage's mesh, seed and folder."""

from typing import Any

from flax import nnx

from rlhf.data.loader import batches, fill_up, row_count
from rlhf.parallel.mesh import make_mesh
from rlhf.stages.folder import StageFolder, fingerprint
from rlhf.stages.setup import batch_placer, place_model
from rlhf.training.loop import FitResult, fit, resolve_steps
from rlhf.training.step import LossFunction


def fit_rows(
    config: Any, folder: StageFolder, model: nnx.Module, loss: LossFunction, rows: Any, held_out_rows: Any | None
) -> FitResult:
    """Trains a model on rows of tokens.

    Args:
        config: of the stage: optimizer, loop, mesh, tracking, seed.
        folder: of the stage; an interrupted run continues from its checkpoints.
        model: to train.
        loss: of a batch of rows.
        rows: batch dataclass of all training rows.
        held_out_rows: the same of the held-out rows, or None.
    """
    mesh = make_mesh(config.mesh)
    size = config.loop.batch_size
    filled = None if held_out_rows is None else fill_up(held_out_rows, size)
    return fit(
        place_model(model, mesh),
        loss,
        lambda start: batches(rows, size, seed=config.seed, start_step=start),
        total_steps=resolve_steps(config.loop, row_count(rows)),
        optimizer=config.optimizer,
        loop=config.loop,
        folder=folder.path,
        fingerprint=fingerprint(config),
        tracking=config.tracking,
        description=folder.path.name,
        evaluation_batches=None if filled is None else lambda: batches(filled, size, seed=0, shuffle=False, epochs=1),
        place_batch=batch_placer(mesh),
    )
