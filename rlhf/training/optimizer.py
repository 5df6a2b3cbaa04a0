"""AdamW (1711.05101) with learning-rate schedules, global-norm clipping and decay on matrices only; built from optax."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from rlhf.errors import UserError
from rlhf.training.adam import clip_by_global_norm, scale_by_adam

LAYERS_AXIS = "layers"
NEVER_DECAYED = ("bias", "scale")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule.

    Attributes:
        learning_rate: highest learning rate, reached after the warm-up.
        schedule: after the warm-up stay constant, fall linearly, fall along a cosine (1608.03983), or stay and then fall
            linearly at the end (warm-up, stable, decay; 2404.06395).
        warmup_steps: steps over which the learning rate rises linearly.
        warmup_from: learning rate of the first step as a fraction of the highest, which is reached after warmup_steps; null for
            one part in warmup_steps, and the highest at the last of them.
        final_fraction: learning rate at the last step as a fraction of the highest; without effect when constant.
        decay_fraction: part of all steps in which the wsd schedule falls; without effect on the others.
        b1: decay of the first moment.
        b2: decay of the second moment.
        epsilon: added to the root of the second moment.
        epsilon_placement: to the root of the corrected second moment ("corrected", as in 1412.6980, algorithm 1), or to the root of
            the second moment as it is ("uncorrected", as TensorFlow does), which takes shorter steps at the start of a run.
        weight_decay: decoupled decay of matrices; vectors (norms, biases) are not decayed.
        clip_norm: gradients with a larger global norm are scaled down to it; None never clips.
    """

    learning_rate: float = 3e-4
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    warmup_steps: int = 0
    warmup_from: float | None = None
    final_fraction: float = 0.1
    decay_fraction: float = 0.2
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    epsilon_placement: Literal["corrected", "uncorrected"] = "corrected"
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0

    def __post_init__(self):
        for name in ("learning_rate", "warmup_steps", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise UserError(f"optimizer.{name} is {getattr(self, name)}", fix="choose 0 or more.")
        for name in ("final_fraction", "decay_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"optimizer.{name} is {getattr(self, name)}", fix="choose a fraction from 0 to 1.")
        if self.warmup_from is not None and not 0 <= self.warmup_from <= 1:
            raise UserError(
                f"optimizer.warmup_from is {self.warmup_from}", fix="choose a fraction from 0 to 1, or null."
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise UserError(f"optimizer.clip_norm is {self.clip_norm}", fix="choose more than 0, or null not to clip.")


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """The learning rate as a function of the number of updates done before (0 at the first update).

    The warm-up rises over `warmup_steps` updates, the first of which already has learning_rate / warmup_steps, so that no
    update is wasted on a learning rate of 0; or it starts at `warmup_from` of the highest and has risen after them. The fall
    ends at `final_fraction` on the last update, number total_steps - 1.

    Raises:
        UserError: the warm-up (and the wsd fall) do not fit into `total_steps`.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    fall = round(config.decay_fraction * total_steps)
    if warmup > total_steps or (config.schedule == "wsd" and warmup + fall > total_steps):
        raise UserError(
            f"optimizer.warmup_steps ({warmup}) does not fit the schedule {config.schedule} of {total_steps} steps",
            fix="shorten the warm-up (and decay_fraction) or train for more steps.",
        )
    rest = max(total_steps - 1 - warmup, 1)
    last = config.final_fraction
    match config.schedule:
        case "constant":
            after = optax.constant_schedule(peak)
        case "linear":
            after = optax.linear_schedule(peak, peak * last, rest)
        case "cosine":
            after = optax.cosine_decay_schedule(peak, rest, alpha=last)
        case "wsd":
            after = optax.linear_schedule(
                peak, peak * last, max(fall, 1), transition_begin=total_steps - 1 - fall - warmup
            )
    if warmup == 0:
        return after
    if config.warmup_from is None:
        rise = optax.linear_schedule(peak / warmup, peak * (1 + 1 / warmup), warmup)
    else:
        rise = optax.linear_schedule(peak * config.warmup_from, peak, warmup)
    return optax.join_schedules([rise, after], [warmup])


def _rank_in_one_layer(parameter: Any) -> int:
    """Axes of a parameter, not counting the one along which blocks are stacked."""
    if isinstance(parameter, nnx.Variable):
        axes = parameter.get_metadata().get("axes")
        if axes is not None:
            return sum(axis != LAYERS_AXIS for axis in axes)
        return jnp.ndim(parameter.get_value())
    return jnp.ndim(parameter)


def decay_mask(parameters: Any) -> Any:
    """Which parameters are decayed: those with two or more axes within a layer that are not named bias or scale.

    The axes are read from the `axes` metadata of `nnx.Param`, in which stacked blocks have a leading "layers".

    Args:
        parameters: a pytree of arrays, or of nnx Variables such as `nnx.State`.

    Returns:
        A pytree of bools that is a prefix of `parameters`: one bool for each Variable or array.
    """

    def is_decayed(path, parameter) -> bool:
        name = jax.tree_util.keystr(path[-1:], simple=True) if path else ""
        return _rank_in_one_layer(parameter) >= 2 and not name.endswith(NEVER_DECAYED)

    return jax.tree_util.tree_map_with_path(is_decayed, parameters, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def in_float32(inner: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Let `inner` see parameters and gradients as float32, so that its moments are float32 for bfloat16 parameters too."""

    def as_float32(tree):
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)

    def init(parameters):
        return inner.init(as_float32(parameters))

    def update(gradients, state, parameters, **extra):
        return inner.update(as_float32(gradients), state, as_float32(parameters), **extra)

    return optax.GradientTransformationExtraArgs(init, update)


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformationExtraArgs:
    """AdamW with the config's schedule over `total_steps` updates; clipping comes first.

    The state holds the learning rate that was used last, see `learning_rate_of`. An update with the argument `accept` set to
    False leaves the moments as they are, see `rlhf.training.adam`.
    """
    uncorrected = config.epsilon_placement == "uncorrected"

    def adamw(learning_rate) -> optax.GradientTransformationExtraArgs:
        clip = optax.identity() if config.clip_norm is None else clip_by_global_norm(config.clip_norm)
        return optax.chain(
            clip,
            scale_by_adam(config.b1, config.b2, config.epsilon, uncorrected=uncorrected),
            optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
            optax.scale_by_learning_rate(learning_rate),
        )

    schedule = make_schedule(config, total_steps)
    return in_float32(optax.inject_hyperparams(adamw, hyperparam_dtype=jnp.float32)(learning_rate=schedule))


def learning_rate_of(optimizer_state: Any) -> jax.Array | None:
    """The learning rate used in the last update, or None for an optimizer that `make_optimizer` did not make."""
    return optax.tree_utils.tree_get(
        optimizer_state, "learning_rate", filtering=lambda path, value: isinstance(value, jax.Array)
    )
