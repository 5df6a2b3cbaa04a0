"""One compiled training step: gradients over micro-batches, exact for unequal lengths, and an update that a NaN cannot spoil.

Losses and metrics come as (weighted sum, weight). Sums and gradients of sums are added over the micro-batches in float32 and
divided by the total weight once, so the result is that of the whole batch however its weight is spread.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from rlhf.errors import UserError
from rlhf.training.adam import AdamState
from rlhf.training.optimizer import learning_rate_of
from rlhf.training.state import TrainState

WeightedSum = tuple[Float[Array, ""], Float[Array, ""]]
LossFunction = Callable[[nnx.Module, Any], tuple[Float[Array, ""], Float[Array, ""], dict[str, WeightedSum]]]
"""(model, batch) → (loss sum, weight, {metric: (sum, weight)}), all scalars."""

RESERVED_METRICS = ("loss", "weight", "grad_norm", "learning_rate", "skipped")


def split_micro_batches(batch: Any, micro_batches: int) -> Any:
    """[batch, ...] → [micro_batches, batch / micro_batches, ...] on every leaf.

    Micro-batch i takes rows i, i + micro_batches, …: each device of a batch-sharded mesh then splits its own rows and none
    move between devices.

    Raises:
        UserError: the batch size is not a multiple of `micro_batches`.
    """

    def split(leaf):
        rows, rest = divmod(leaf.shape[0], micro_batches)
        if rest:
            raise UserError(
                f"micro_batches ({micro_batches}) does not divide the batch of {leaf.shape[0]} rows",
                fix="choose a batch size that is a multiple of micro_batches.",
            )
        return jnp.swapaxes(leaf.reshape(rows, micro_batches, *leaf.shape[1:]), 0, 1)

    return jax.tree.map(split, batch)


def _as_float32(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def accumulate_gradients(
    sums_and_gradients: Callable[[Any], tuple[dict[str, WeightedSum], Any]], batch: Any, micro_batches: int
) -> tuple[dict[str, WeightedSum], Any]:
    """Add up sums and gradients of sums over micro-batches, one after the other, in float32.

    Args:
        sums_and_gradients: micro-batch → ({metric: (sum, weight)}, gradients of the loss sum).
        batch: pytree with a leading batch axis on every leaf.
        micro_batches: number of parts.
    """
    if micro_batches == 1:
        return _as_float32(sums_and_gradients(batch))
    parts = split_micro_batches(batch, micro_batches)
    shapes = jax.eval_shape(sums_and_gradients, jax.tree.map(lambda leaf: leaf[0], parts))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, jnp.float32), shapes)

    def add(total, part):
        return jax.tree.map(jnp.add, total, _as_float32(sums_and_gradients(part))), None

    return jax.lax.scan(add, zeros, parts)[0]


def loss_sums(loss_function: LossFunction, model: nnx.Module, batch: Any) -> dict[str, WeightedSum]:
    """The loss and the metrics of one batch as {name: (sum, weight)}, the loss under "loss".

    Raises:
        ValueError: the loss function uses a name that the step itself reports.
    """
    loss_sum, weight, metrics = loss_function(model, batch)
    taken = [name for name in metrics if name in RESERVED_METRICS]
    if taken:
        raise ValueError(f"the loss function may not name its metrics {taken}; these names are the train step's own")
    return {"loss": (jnp.asarray(loss_sum), jnp.asarray(weight)), **metrics}


def _accepted(accept: Array, proposed: Any, earlier: Any) -> Any:
    """The proposed arrays, or the earlier ones where they are not accepted; Adam has chosen for itself."""

    def choose(new, old):
        return new if isinstance(new, AdamState) else jnp.where(accept, new, old)

    return jax.tree.map(choose, proposed, earlier, is_leaf=lambda node: isinstance(node, AdamState))


def apply_gradients(
    state: TrainState, gradients: Any, loss: Float[Array, ""], optimizer: optax.GradientTransformation
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Update the parameters, or skip the update wholly when the loss or the gradient is not finite.

    A skipped update leaves parameters and optimizer state as they were, bit for bit, and counts in `state.skipped`, which a
    finite update sets back to 0.

    Returns:
        The next state and grad_norm (before clipping), learning_rate, skipped.
    """
    gradient_norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    update = optax.with_extra_args_support(optimizer).update
    updates, optimizer_state = update(gradients, state.optimizer_state, state.trainable, accept=finite)
    skipped = jnp.where(finite, 0, state.skipped + 1).astype(jnp.int32)
    report = {"grad_norm": gradient_norm, "skipped": skipped.astype(jnp.float32)}
    learning_rate = learning_rate_of(optimizer_state)
    if learning_rate is not None:
        report["learning_rate"] = learning_rate
    next_state = TrainState(
        step=state.step + 1,
        trainable=_accepted(finite, optax.apply_updates(state.trainable, updates), state.trainable),
        frozen=state.frozen,
        optimizer_state=_accepted(finite, optimizer_state, state.optimizer_state),
        skipped=skipped,
    )
    return next_state, report


def sums_and_gradients(graphdef: nnx.GraphDef, loss_function: LossFunction, state: TrainState) -> Callable:
    """The function from a part of a batch to the sums of a loss and the gradients of the loss's, for `accumulate_gradients`."""

    def of_part(part):
        def objective(trainable):
            sums = loss_sums(loss_function, nnx.merge(graphdef, trainable, state.frozen), part)
            return sums["loss"][0], sums

        (_, sums), gradients = jax.value_and_grad(objective, has_aux=True)(state.trainable)
        return sums, gradients

    return of_part


def gradient_step(
    graphdef: nnx.GraphDef,
    loss_function: LossFunction,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Any,
    micro_batches: int = 1,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One training step as a pure function, for use inside `jax.jit` or `jax.lax.scan`.

    Args:
        graphdef: from `create_train_state`.
        loss_function: differentiated with respect to the trainable parameters.
        optimizer: the one that the state was created with.
        state: before the step.
        batch: pytree with a leading batch axis on every leaf.
        micro_batches: parts of the batch that are in memory one after the other.

    Returns:
        The next state and float32 scalars: loss, weight (the loss's total weight), grad_norm before clipping, learning_rate,
        skipped (updates skipped in a row), and the means of the loss function's own metrics, NaN for one whose weight is 0.
    """

    sums, gradient_sum = accumulate_gradients(sums_and_gradients(graphdef, loss_function, state), batch, micro_batches)
    loss_sum, weight = sums["loss"]
    divisor = jnp.where(weight == 0, 1, weight)
    # One quotient for all: XLA on a CPU would store those of every gradient, see `rlhf.training.adam`.
    gradients = jax.tree.map(lambda leaf: leaf * (1 / divisor), gradient_sum)
    next_state, report = apply_gradients(state, gradients, loss_sum / divisor, optimizer)
    means = {name: total / weight for name, (total, weight) in sums.items()}
    return next_state, {**means, "loss": loss_sum / divisor, "weight": weight, **report}


def _mesh_shardings(state: TrainState) -> Any:
    """Shardings to keep the state in, or None (let jax choose) when it lives on one device."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return shardings if any(isinstance(leaf, NamedSharding) for leaf in jax.tree.leaves(shardings)) else None


class TrainStep:
    """The compiled train step (state, batch) → (next state, metrics), made of `gradient_step`.

    It is compiled once for each batch shape. All of the state but `frozen` (which other models may share) is donated: the
    arrays passed in may not be used again. On a mesh the next state keeps the shardings that the first call sees, and the
    batch may be sharded along its rows.

    Args:
        graphdef: from `create_train_state`.
        loss_function: differentiated with respect to the trainable parameters.
        optimizer: the one that the state was created with.
        micro_batches: parts of the batch that are in memory one after the other.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        loss_function: LossFunction,
        optimizer: optax.GradientTransformation,
        micro_batches: int = 1,
    ):
        def train_step(carried: TrainState, frozen: Any, batch: Any):
            state = dataclasses.replace(carried, frozen=frozen)
            next_state, metrics = gradient_step(graphdef, loss_function, optimizer, state, batch, micro_batches)
            return dataclasses.replace(next_state, frozen=None), metrics

        self._function = train_step
        self._program: Callable | None = None

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        """One step; see `gradient_step` for the metrics."""
        carried = dataclasses.replace(state, frozen=None)
        next_state, metrics = self._program_for(carried)(carried, state.frozen, batch)
        return dataclasses.replace(next_state, frozen=state.frozen), metrics

    def lower(self, state: TrainState, batch: Any) -> jax.stages.Lowered:
        """The program for these shapes, of arrays or `jax.ShapeDtypeStruct`s, ready to be compiled and not run."""
        carried = dataclasses.replace(state, frozen=None)
        return self._program_for(carried).lower(carried, state.frozen, batch)

    def _program_for(self, carried: TrainState) -> Callable:
        if self._program is None:
            shardings = _mesh_shardings(carried)
            out_shardings = None if shardings is None else (shardings, None)
            self._program = jax.jit(self._function, donate_argnums=0, out_shardings=out_shardings)
        return self._program


def make_evaluate_step(
    graphdef: nnx.GraphDef, loss_function: LossFunction
) -> Callable[[TrainState, Any], dict[str, WeightedSum]]:
    """Make the compiled evaluation (state, batch) → {name: (sum, weight)}, the loss under "loss".

    Sums, not means, so that batches of unequal weight can be added exactly.
    """

    @jax.jit
    def evaluate(trainable: Any, frozen: Any, batch: Any):
        return _as_float32(loss_sums(loss_function, nnx.merge(graphdef, trainable, frozen), batch))

    return lambda state, batch: evaluate(state.trainable, state.frozen, batch)
