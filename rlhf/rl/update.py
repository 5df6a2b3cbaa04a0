"""The update of policy and value model on one batch of experience: all epochs and minibatches in one compiled program.

    for epoch: for shuffled minibatch:
        policy ◀ gradient of the clipped surrogate          (1707.06347, equation 7)
        value  ◀ gradient of the clipped squared error
        cost   ◀ the same, where reward and cost have a value model each

Separate policy and value networks have an optimizer state each, so no loss needs a coefficient. A value head on the policy's own
network (1909.08593) adds coefficient · value loss to the policy's. Steps that are not to be taken (the policy's while the value
model warms up, all after the policy has moved too far) leave everything as it was, inside the same program.
"""

from collections.abc import Mapping
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
from rlhf.rl.joint_step import Objective, joint_gradient_step
from rlhf.rl.policy_loss import of_shared_network, policy_loss, value_loss
from rlhf.training.next_token import next_token_loss
from rlhf.training.state import TrainState, create_train_state, outline_train_state
from rlhf.training.step import gradient_step


@register_dataclass
@dataclass(frozen=True)
class Learners:
    """What an update changes.

    Attributes:
        policy: trained parameters and optimizer state of the policy, with the value head where they share a network; `frozen` is
            None, `Roles` has it.
        value: the same of the value model; None where there is none.
        average: moving average of the policy's trained parameters, in float32; None where none is kept.
        cost_value: the state of the cost critic; None where there is none.
    """

    policy: TrainState
    value: TrainState | None
    average: Any = None
    cost_value: TrainState | None = None


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


Optimizers = tuple[optax.GradientTransformation, optax.GradientTransformation]
"""Of the policy and of the value models."""


def begin_learning(
    policy: nnx.Module,
    value: nnx.Module | None,
    optimizers: Optimizers,
    *,
    cost_value: nnx.Module | None = None,
    keep_average: bool = False,
) -> Learners:
    """The learners before the first update: all parameters of a model, or those of its adapter and its head."""

    def state(model: nnx.Module | None, optimizer: optax.GradientTransformation) -> TrainState | None:
        if model is None:
            return None
        return replace(create_train_state(model, optimizer, trained(model))[1], frozen=None)

    learning = state(policy, optimizers[0])
    average = jax.tree.map(_float32_copy, learning.trainable) if keep_average else None
    return Learners(learning, state(value, optimizers[1]), average, state(cost_value, optimizers[1]))


def _float32_copy(parameter: Array) -> Array:
    # A copy even of float32: an update gives away the buffers of policy and average alike.
    return jnp.array(parameter, jnp.float32, copy=True)


def outline_learning(
    policy: nnx.Module,
    value: nnx.Module | None,
    optimizers: Optimizers,
    mesh: Mesh,
    *,
    cost_value: nnx.Module | None = None,
    keep_average: bool = False,
) -> Learners:
    """What `begin_learning` gives, as shapes laid out over a mesh, of models of shapes."""

    def state(model: nnx.Module | None, optimizer: optax.GradientTransformation) -> TrainState | None:
        if model is None:
            return None
        return replace(outline_train_state(model, optimizer, trained(model), mesh)[1], frozen=None)

    learning, average = state(policy, optimizers[0]), None
    if keep_average:
        average = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding), learning.trainable
        )
    return Learners(learning, state(value, optimizers[1]), average, state(cost_value, optimizers[1]))


def update(
    definitions: Mapping[str, nnx.GraphDef],
    optimizers: Optimizers,
    learners: Learners,
    frozen: Mapping[str, nnx.State],
    experience: Experience,
    key: PRNGKeyArray,
    config: PPOConfig,
    inputs: UpdateInputs = NOTHING_ELSE,
    end_token: int | None = None,
) -> tuple[Learners, dict[str, Float[Array, "epochs minibatches"]]]:
    """Trains policy and value models on a batch of experience. Pure; call it under `jax.jit` with the learners donated.

    Args:
        definitions: graph definitions of "policy" and, where they are there, "value" and "cost_value".
        optimizers: of policy and value models.
        learners: their states.
        frozen: what of these models is not trained, by the same names; other models may share it.
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
        of_policy, of_value = losses
        text = next_token_loss(config.logits_chunk)
        if config.shares_network:
            of_policy, text = of_shared_network(of_policy), of_shared_network(text)
        objectives = [Objective("loss", of_policy, minibatch)]
        if config.shares_network:
            objectives.append(Objective("value_loss", of_value, minibatch, config.value_coefficient))
        if rows is not None:
            objectives.append(Objective("pretraining_loss", text, rows, config.pretraining_coefficient))
        if len(objectives) == 1:
            return gradient_step(
                definitions["policy"], of_policy, optimizers[0], state, minibatch, config.micro_batches
            )
        return joint_gradient_step(definitions["policy"], objectives, optimizers[0], state, config.micro_batches)

    def value_step(role: str, state: TrainState, minibatch: Experience):
        state = replace(state, frozen=frozen[role])
        state, measured = gradient_step(
            definitions[role], losses[1], optimizers[1], state, minibatch, config.micro_batches
        )
        return replace(state, frozen=None), measured

    def take_step(learners: Learners, minibatch: Experience, rows: SequenceBatch | None):
        policy, measured = policy_step(replace(learners.policy, frozen=frozen["policy"]), minibatch, rows)
        policy = replace(policy, frozen=None)
        metrics = _policy_metrics(measured)
        if config.shares_network:
            metrics = _with_value_metrics(metrics, measured | {"loss": measured["value_loss"]})
        if inputs.train_policy is not None:
            policy = _choose(inputs.train_policy, policy, learners.policy)
        moved = replace(learners, policy=policy)
        if learners.value is not None:
            value, measured = value_step("value", learners.value, minibatch)
            moved, metrics = replace(moved, value=value), _with_value_metrics(metrics, measured)
        if learners.cost_value is not None:
            cost_value, measured = value_step("cost_value", learners.cost_value, minibatch.of_cost())
            moved, metrics = replace(moved, cost_value=cost_value), _with_value_metrics(metrics, measured, "cost_")
        return moved, metrics

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


def _with_value_metrics(metrics: dict[str, Array], value: dict[str, Array], prefix: str = "") -> dict[str, Array]:
    return metrics | {
        f"loss/{prefix}value_avg": value["loss"],
        f"val/{prefix}clipfrac_avg": value["value_clip_fraction"],
        f"val/{prefix}error": value["value_error"],
        f"val/{prefix}grad_norm": value["grad_norm"],
        "val/skipped": jnp.maximum(metrics["val/skipped"], value["skipped"]),
    }
