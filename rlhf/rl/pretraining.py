"""PPO-ptx: the gradient of language modelling on pretraining text, added to each step's (2203.02155, equation 2).

What reinforcement learning would make the policy forget is held by the data that it was learned from.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from rlhf.data.batches import SequenceBatch
from rlhf.losses.language_model import cross_entropy
from rlhf.training.state import TrainState
from rlhf.training.step import LossFunction, accumulate_gradients, apply_gradients, loss_sums


def pretraining_loss(logits_chunk: int | None) -> LossFunction:
    """The loss of the pretraining rows: cross-entropy of each target token given those before it, at temperature 1."""

    def loss(policy, rows: SequenceBatch):
        hidden = policy(rows.tokens, rows.segment_ids)
        log_probs = policy.token_log_probs(hidden[:, :-1], rows.tokens[:, 1:], chunk_size=logits_chunk)
        return *cross_entropy(log_probs, rows.loss_mask[:, 1:]), {}

    return loss


def joint_gradient_step(
    graphdef: nnx.GraphDef,
    losses: tuple[LossFunction, LossFunction],
    coefficient: float,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batches: tuple[Any, SequenceBatch],
    micro_batches: int,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One step on the mean loss of a minibatch + coefficient · the mean loss of the pretraining rows.

    The two gradients are accumulated one after the other. Otherwise as `rlhf.training.step.gradient_step`.

    Args:
        graphdef: of the policy.
        losses: of the minibatch, and of the pretraining rows.
        coefficient: weight of the second.
        optimizer: the one that the state was created with.
        state: before the step.
        batches: the minibatch and the rows.
        micro_batches: parts that either is computed in.

    Returns:
        The next state and the metrics of the minibatch, with the rows' loss in nats a token as "pretraining_loss".
    """

    def of(loss_function):
        def sums_and_gradients(part):
            def objective(trainable):
                sums = loss_sums(loss_function, nnx.merge(graphdef, trainable, state.frozen), part)
                return sums["loss"][0], sums

            (_, sums), gradients = jax.value_and_grad(objective, has_aux=True)(state.trainable)
            return sums, gradients

        return sums_and_gradients

    means, gradients = {}, []
    for loss_function, batch in zip(losses, batches, strict=True):
        sums, gradient_sum = accumulate_gradients(of(loss_function), batch, micro_batches)
        total, weight = sums["loss"]
        divisor = jnp.where(weight == 0, 1, weight)
        gradients.append(jax.tree.map(lambda leaf, divisor=divisor: leaf / divisor, gradient_sum))
        name = "loss" if not means else "pretraining_loss"
        means = {part: total / weight for part, (total, weight) in sums.items() if part != "loss"} | means
        means[name] = total / divisor
    joined = jax.tree.map(lambda first, second: first + coefficient * second, *gradients)
    next_state, report = apply_gradients(
        state, joined, means["loss"] + coefficient * means["pretraining_loss"], optimizer
    )
    return next_state, means | report
