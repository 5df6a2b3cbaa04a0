"""The update of policy and value model on one batch of experience: all epochs and minibatches in one compiled program.

    for epoch: for shuffled minibatch:
        policy ◀ gradient of the clipped surrogate          (1707.06347, equation 7)
        value  ◀ gradient of the clipped squared error

Policy and value model are separate networks with an optimizer each, so neither loss needs a coefficient.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.tree_util import register_dataclass
from jaxtyping import Array, Float, PRNGKeyArray

from rlhf.losses.policy_gradient import clipped_surrogate, clipped_value_loss
from rlhf.models.partition import trained
from rlhf.rl.batches import Experience
from rlhf.rl.config import PPOConfig
from rlhf.rl.score import response_log_probs, response_values
from rlhf.training.state import TrainState, create_train_state, outline_train_state
from rlhf.training.step import gradient_step


@register_dataclass
@dataclass(frozen=True)
class Learners:
    """What an update changes.

    Attributes:
        policy: trained parameters and optimizer state of the policy; `frozen` is None, `Roles` has it.
        value: the same of the value model.
    """

    policy: TrainState
    value: TrainState


def begin_learning(
    policy: nnx.Module,
    value: nnx.Module,
    optimizers: tuple[optax.GradientTransformation, optax.GradientTransformation],
) -> Learners:
    """The learners before the first update: all parameters of a model, or those of its adapter and its head."""
    states = [
        create_train_state(model, optimizer, trained(model))[1]
        for model, optimizer in zip((policy, value), optimizers, strict=True)
    ]
    return Learners(*(replace(state, frozen=None) for state in states))


def outline_learning(
    policy: nnx.Module,
    value: nnx.Module,
    optimizers: tuple[optax.GradientTransformation, optax.GradientTransformation],
    mesh: Mesh,
) -> Learners:
    """What `begin_learning` gives, as shapes laid out over a mesh, of models of shapes."""
    states = [
        outline_train_state(model, optimizer, trained(model), mesh)[1]
        for model, optimizer in zip((policy, value), optimizers, strict=True)
    ]
    return Learners(*(replace(state, frozen=None) for state in states))


def policy_loss(config: PPOConfig) -> Callable:
    """The loss function of the policy on a minibatch of experience."""

    def loss(policy, batch: Experience):
        log_probs, entropy = response_log_probs(
            policy,
            batch.tokens,
            batch.mask,
            batch.response_mask.shape[1],
            temperature=config.temperature,
            logits_chunk=config.logits_chunk,
        )
        total, weight, metrics = clipped_surrogate(
            log_probs, batch.log_probs, batch.advantages, batch.response_mask, config.clip_range
        )
        ratio = jnp.exp(jnp.where(batch.response_mask, log_probs - batch.log_probs, 0.0))
        masked_entropy = jnp.where(batch.response_mask, entropy, 0.0)
        metrics |= {
            "entropy": (masked_entropy.sum(), weight),
            "squared_ratio": (jnp.where(batch.response_mask, jnp.square(ratio), 0.0).sum(), weight),
        }
        return total, weight, metrics

    return loss


def value_loss(config: PPOConfig) -> Callable:
    """The loss function of the value model on a minibatch of experience."""

    def loss(value_model, batch: Experience):
        values = response_values(value_model, batch.tokens, batch.mask, batch.response_mask.shape[1])
        return clipped_value_loss(values, batch.values, batch.returns, batch.response_mask, config.value_clip_range)

    return loss


def update(
    definitions: tuple[nnx.GraphDef, nnx.GraphDef],
    optimizers: tuple[optax.GradientTransformation, optax.GradientTransformation],
    learners: Learners,
    frozen: tuple[nnx.State, nnx.State],
    experience: Experience,
    key: PRNGKeyArray,
    config: PPOConfig,
) -> tuple[Learners, dict[str, Float[Array, "epochs minibatches"]]]:
    """Trains policy and value model on a batch of experience. Pure; call it under `jax.jit` with the learners donated.

    Args:
        definitions: graph definitions of policy and value model.
        optimizers: of policy and value model.
        learners: their states.
        frozen: what of both models is not trained; other models may share it.
        experience: the scored rollout.
        key: shuffles the minibatches, anew in each epoch.
        config: epochs, sizes, clip ranges.

    Returns:
        The new learners, and each metric for every minibatch of every epoch.
    """
    count = config.rollout_batch_size // config.minibatch_size
    losses = (policy_loss(config), value_loss(config))

    def minibatch_step(learners: Learners, rows):
        minibatch = jax.tree.map(lambda leaf: leaf[rows], experience)
        states, metrics = [], []
        for definition, optimizer, loss, state, rest in zip(
            definitions, optimizers, losses, (learners.policy, learners.value), frozen, strict=True
        ):
            whole = replace(state, frozen=rest)
            state, measured = gradient_step(definition, loss, optimizer, whole, minibatch, config.micro_batches)
            states.append(replace(state, frozen=None))
            metrics.append(measured)
        return Learners(*states), _name_metrics(*metrics)

    def epoch_step(learners: Learners, epoch):
        order = jax.random.permutation(jax.random.fold_in(key, epoch), config.rollout_batch_size)
        return jax.lax.scan(minibatch_step, learners, order.reshape(count, config.minibatch_size))

    return jax.lax.scan(epoch_step, learners, jnp.arange(config.epochs))


def _name_metrics(policy: dict[str, Array], value: dict[str, Array]) -> dict[str, Array]:
    return {
        "loss/policy_avg": policy["loss"],
        "loss/value_avg": value["loss"],
        "policy/approxkl_avg": policy["approximate_kl"],
        "policy/clipfrac_avg": policy["clip_fraction"],
        "policy/entropy_avg": policy["entropy"],
        "policy/grad_norm": policy["grad_norm"],
        "policy/learning_rate": policy["learning_rate"],
        "val/clipfrac_avg": value["value_clip_fraction"],
        "val/error": value["value_error"],
        "val/grad_norm": value["grad_norm"],
        "val/skipped": jnp.maximum(policy["skipped"], value["skipped"]),
        "val/ratio": policy["ratio"],
        "val/ratio_var": policy["squared_ratio"] - jnp.square(policy["ratio"]),
    }
