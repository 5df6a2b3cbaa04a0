"""A supervised stage's training: `fit_rows` with the stage's settings, mesh and folder."""

from typing import Any

import jax
from flax import nnx

from rlhf.data.loader import row_count
from rlhf.models.adapters.description import describe_trained
from rlhf.models.partition import trained
from rlhf.parallel.mesh import make_mesh
from rlhf.stages.folder import StageFolder, begin_writing, fingerprint
from rlhf.stages.setup import batch_layout, check_rows_divide, check_time_divides, place_model
from rlhf.tracking.console import say
from rlhf.training.loop import FitResult, resolve_steps
from rlhf.training.rows import Rows, fit_rows
from rlhf.training.step import LossFunction


def train(
    config: Any, folder: StageFolder, model: nnx.Module, loss: LossFunction, rows: Rows, held_out_rows: Rows | None
) -> FitResult:
    """Trains a model, or its adapter, on rows of tokens.

    Args:
        config: of the stage: optimizer, loop, mesh, tracking, seed.
        folder: of the stage; an interrupted run continues from its checkpoints.
        model: to train.
        loss: of a batch of rows.
        rows: training rows.
        held_out_rows: rows to evaluate on, or None.
    """
    mesh = make_mesh(config.mesh)
    layout = batch_layout(mesh, config.loop.batch_size, "loop.batch_size")
    check_rows_divide("loop.batch_size", config.loop.batch_size, mesh, micro_batches=config.loop.micro_batches)
    check_time_divides("row_length" if hasattr(config, "row_length") else "max_length", rows.tokens.shape[-1], mesh)
    model = place_model(model, mesh)
    trainable = trained(model)
    say(describe_trained(model))
    resolve_steps(config.loop, row_count(rows))
    begin_writing(folder)
    with jax.set_mesh(mesh):
        return fit_rows(
            model,
            loss,
            rows,
            evaluation_rows=held_out_rows,
            optimizer_config=config.optimizer,
            loop_config=config.loop,
            folder=folder.path,
            seed=config.seed,
            fingerprint=fingerprint(config),
            tracking_config=config.tracking,
            description=folder.path.name,
            layout=layout,
            trainable=trainable,
        )
