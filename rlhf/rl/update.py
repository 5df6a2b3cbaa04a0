"""The update of policy and value model on one batch of experience: all epochs and minibatches in one compiled program.

    for epoch: for shuffled minibatch:
        policy ◀ gradient of the clipped surrogate          (1707.06347, equation 7)
        value  ◀ gradient of the clipped squared error

Policy and value model are separate networks with an optimizer each, so neither loss needs a coefficient. Steps that are not to be
taken (the policy's while the value model warms up, all after the policy has moved too far) leave everything as it was, inside the
same program.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.tree_util import register_dataclass
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from rlhf.data.batches import SequenceBatch
from rlhf.models.partition import trained
from rlhf.rl.batches import Experience
from rlhf.rl.config import PPOConfig
from rlhf.rl.policy_loss import policy_loss, value_loss
from rlhf.rl.pretraining import joint_gradient_step, pretraining_loss
from rlhf.training.state import TrainState, create_train_state, outline_train_state
from rlhf.training.step import gradient_step


@register_dataclass
@dataclass(frozen=True)
class Learners:
    """What an update changes.

    Attributes:
        policy: trained parameters and optimizer state of the policy; `frozen` is None, `Roles` has it.
        value: the same of the value model; None where there is none.
        average: moving average of the policy's trained parameters, in float32; None where none is kept.
    """

    policy: TrainState
    value: TrainState | None
    average: Any = None


@register_dataclass
@dataclass(frozen=True)
class UpdateInputs:
    """What an update takes besides learners and experience.

    Attributes:
        train_policy: False while only the value model learns; None for True.
        kl_coefficient: weight of the KL penalty, used where it stands in the loss; None for the configuration's.
        pretraining: rows of text for PPO-ptx, [rows of a minibatch · minibatches of all epochs, time]; minibatch number i takes
            every row whose number is i modulo their count, so that each device has its share of each. None without.
    """

    train_policy: Bool[Array, ""] | None = None
    kl_coefficient: Float[Array, ""] | None = None
    pretraining: SequenceBatch | None = None


NOTHING_ELSE = UpdateInputs()


def begin_learning(
    policy: nnx.Module,
    value: nnx.Module | None,
    optimizers: tuple[optax.GradientTransformation, optax.GradientTransformation],
    *,
    keep_average: bool = False,
) -> Learners:
    """The learners before the first update: all parameters of a model, or those of its adapter and its head."""
    states = [
        None if model is None else replace(create_train_state(model, optimizer, trained(model))[1], frozen=None)
        for model, optimizer in zip((policy, value), optimizers, strict=True)
    ]
    average = jax.tree.map(_float32_copy, states[0].trainable) if keep_average else None
    return Learners(*states, average)


def _float32_copy(parameter: Array) -> Array:
    # A copy even of float32: an update gives away the buffers of policy and average alike.
    return jnp.array(parameter, jnp.float32, copy=True)


def outline_learning(
    policy: nnx.Module,
    value: nnx.Module | None,
    optimizers: tuple[optax.GradientTransformation, optax.GradientTransformation],
    mesh: Mesh,
    *,
    keep_average: bool = False,
) -> Learners:
    """What `begin_learning` gives, as shapes laid out over a mesh, of models of shapes."""
    states = [
        None if model is None else replace(outline_train_state(model, optimizer, trained(model), mesh)[1], frozen=None)
        for model, optimizer in zip((policy, value), optimizers, strict=True)
    ]
    average = None
    if keep_average:
        average = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding), states[0].trainable
        )
    return Learners(*states, average)


def update(
    definitions: Sequence[nnx.GraphDef],
    optimizers: tuple[optax.GradientTransformation, optax.GradientTransformation],
    learners: Learners,
    frozen: Sequence[nnx.State],
    experience: Experience,
    key: PRNGKeyArray,
    config: PPOConfig,
    inputs: UpdateInputs = NOTHING_ELSE,
    end_token: int | None = None,
) -> tuple[Learners, dict[str, Float[Array, "epochs minibatches"]]]:
    """Trains policy and value model on a batch of experience. Pure; call it under `jax.jit` with the learners donated.

    Args:
        definitions: graph definitions of the policy and, where there is one, the value model.
        optimizers: of policy and value model.
        learners: their states.
        frozen: what of both models is not trained; other models may share it.
        experience: the scored rollout.
        key: shuffles the minibatches, anew in each epoch.
        config: epochs, sizes, clip ranges.
        inputs: what else it depends on.
        end_token: which token a minimum length rules out.

    Returns:
        The new learners, and each metric for every minibatch of every epoch. Where `policy/update_stopped` is 1 no step was taken,
        and the other metrics are not of the update.
    """
    kl_coefficient = config.kl.coefficient if inputs.kl_coefficient is None else inputs.kl_coefficient
    losses = (policy_loss(config, kl_coefficient, end_token), value_loss(config))

    def policy_step(state: TrainState, minibatch: Experience, rows: SequenceBatch | None):
        if rows is None:
            return gradient_step(definitions[0], losses[0], optimizers[0], state, minibatch, config.micro_batches)
        joint = losses[0], pretraining_loss(config.logits_chunk)
        weight, batches = config.pretraining_coefficient, (minibatch, rows)
        return joint_gradient_step(definitions[0], joint, weight, optimizers[0], state, batches, config.micro_batches)

    def take_step(learners: Learners, minibatch: Experience, rows: SequenceBatch | None):
        policy, measured = policy_step(replace(learners.policy, frozen=frozen[0]), minibatch, rows)
        policy = replace(policy, frozen=None)
        metrics = _policy_metrics(measured)
        if inputs.train_policy is not None:
            policy = _choose(inputs.train_policy, policy, learners.policy)
        if learners.value is None:
            return replace(learners, policy=policy), metrics
        state = replace(learners.value, frozen=frozen[1])
        value, measured = gradient_step(
            definitions[1], losses[1], optimizers[1], state, minibatch, config.micro_batches
        )
        metrics |= _value_metrics(measured)
        metrics["val/skipped"] = jnp.maximum(metrics["val/skipped"], measured["skipped"])
        return replace(learners, policy=policy, value=replace(value, frozen=None)), metrics

    def minibatch_step(carry, inputs):
        rows, text = inputs
        minibatch = jax.tree.map(lambda leaf: leaf[rows], experience)
        if config.stop_at_kl is None:
            return take_step(carry, minibatch, text)
        learners, stopped = carry

        def step(learners):
            moved, metrics = take_step(learners, minibatch, text)
            too_far = metrics["policy/approxkl_avg"] > config.stop_at_kl
            return _choose(too_far, learners, moved), metrics, too_far

        def stay(learners):
            shapes = jax.eval_shape(step, learners)[1]
            return learners, jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes), stopped

        learners, metrics, stopped = jax.lax.cond(stopped, stay, step, learners)
        return (learners, stopped), metrics | {"policy/update_stopped": stopped.astype(jnp.float32)}

    def epoch_step(carry, inputs):
        epoch, text = inputs
        order = jax.random.permutation(jax.random.fold_in(key, epoch), config.rollout_batch_size)
        return jax.lax.scan(minibatch_step, carry, (order.reshape(config.minibatches, config.minibatch_size), text))

    text = jax.tree.map(lambda leaf: _by_epoch(leaf, config), inputs.pretraining)
    carry = learners if config.stop_at_kl is None else (learners, jnp.zeros((), bool))
    carry, metrics = jax.lax.scan(epoch_step, carry, (jnp.arange(config.epochs), text))
    learners = carry if config.stop_at_kl is None else carry[0]
    if config.average_decay is not None:
        learners = replace(learners, average=_moved_average(learners, config.average_decay))
    return learners, metrics


def _choose(condition: Bool[Array, ""], chosen: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, other)


def _by_epoch(leaf: Array, config: PPOConfig) -> Array:
    """[rows · steps, time] → [epochs, minibatches, rows, time]."""
    by_step = jnp.swapaxes(leaf.reshape(-1, config.epochs * config.minibatches, leaf.shape[-1]), 0, 1)
    return by_step.reshape(config.epochs, config.minibatches, *by_step.shape[1:])


def _moved_average(learners: Learners, decay: float) -> Any:
    return jax.tree.map(
        lambda average, now: decay * average + (1 - decay) * now.astype(jnp.float32),
        learners.average,
        learners.policy.trainable,
    )


def _policy_metrics(policy: dict[str, Array]) -> dict[str, Array]:
    metrics = {
        "loss/policy_avg": policy["loss"],
        "policy/approxkl_avg": policy["approximate_kl"],
        "policy/clipfrac_avg": policy["clip_fraction"],
        "policy/entropy_avg": policy["entropy"],
        "policy/grad_norm": policy["grad_norm"],
        "policy/learning_rate": policy["learning_rate"],
        "val/skipped": policy["skipped"],
        "val/ratio": policy["ratio"],
        "val/ratio_var": policy["squared_ratio"] - jnp.square(policy["ratio"]),
    }
    named = {"kl_loss": "loss/kl_avg", "pretraining_loss": "loss/pretraining_avg"}
    return metrics | {name: policy[part] for part, name in named.items() if part in policy}


def _value_metrics(value: dict[str, Array]) -> dict[str, Array]:
    return {
        "loss/value_avg": value["loss"],
        "val/clipfrac_avg": value["value_clip_fraction"],
        "val/error": value["value_error"],
        "val/grad_norm": value["grad_norm"],
    }
