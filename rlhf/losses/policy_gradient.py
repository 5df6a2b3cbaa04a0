"""Proximal policy optimisation (1707.06347): the clipped losses of policy and value model."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from rlhf.losses.masking import masked_sum

WeightedSum = tuple[Float32[Array, ""], Float32[Array, ""]]


def surrogate_losses(
    log_probs: Float[Array, "batch response_time"],
    old_log_probs: Float[Array, "batch response_time"],
    advantages: Float[Array, "batch response_time"],
    mask: Bool[Array, "batch response_time"],
    clip_range: float | None,
    dual_clip: float | None = None,
) -> Float32[Array, "batch response_time"]:
    """−min(ρA, clip(ρ, 1 ± clip_range)A) of each token, ρ = π/π_old (1707.06347, equation 7), to be minimised.

    Where A < 0 the minimum has no lower bound: a token that has become far likelier since it was sampled would be pushed
    down with all its ratio. The dual clip bounds it: max(min(…), dual_clip · A) there (1912.09729, equation 5).

    Args:
        log_probs: of the sampled tokens under the policy being trained.
        old_log_probs: of the same tokens under the policy that sampled them.
        advantages: of each token.
        mask: True on response tokens.
        clip_range: how far the ratio may leave 1 before it stops being rewarded; None for the plain −ρA, whose gradient is
            that of REINFORCE while ρ = 1.
        dual_clip: highest ratio that counts where the advantage is negative, above 1; None for no bound.

    Returns:
        Losses, 0 outside the mask.
    """
    ratio = jnp.exp(_log_ratio(log_probs, old_log_probs, mask))
    advantages = jnp.where(mask, advantages.astype(jnp.float32), 0.0)
    objective = ratio * advantages
    if clip_range is not None:
        objective = jnp.minimum(objective, jnp.clip(ratio, 1.0 - clip_range, 1.0 + clip_range) * advantages)
    if dual_clip is not None:
        objective = jnp.where(advantages < 0, jnp.maximum(objective, dual_clip * advantages), objective)
    return -objective


def surrogate_metrics(
    log_probs: Float[Array, "batch response_time"],
    old_log_probs: Float[Array, "batch response_time"],
    mask: Bool[Array, "batch response_time"],
    clip_range: float | None,
) -> dict[str, WeightedSum]:
    """How far a policy has moved since it sampled; arguments as for `surrogate_losses`.

    Returns:
        As (sum, number of tokens): "clip_fraction" (share of tokens whose ratio is out of range; 0 without a range),
        "approximate_kl" (k2 estimate of the distance moved, in nats per token) and "ratio" (mean ρ).
    """
    log_ratio = _log_ratio(log_probs, old_log_probs, mask)
    ratio = jnp.exp(log_ratio)
    outside = jnp.zeros_like(mask) if clip_range is None else jnp.abs(ratio - 1.0) > clip_range
    return {
        "clip_fraction": masked_sum(outside, mask),
        "approximate_kl": masked_sum(0.5 * jnp.square(log_ratio), mask),
        "ratio": masked_sum(ratio, mask),
    }


def clipped_surrogate(
    log_probs: Float[Array, "batch response_time"],
    old_log_probs: Float[Array, "batch response_time"],
    advantages: Float[Array, "batch response_time"],
    mask: Bool[Array, "batch response_time"],
    clip_range: float | None,
    dual_clip: float | None = None,
) -> tuple[Float32[Array, ""], Float32[Array, ""], dict[str, WeightedSum]]:
    """The sum of `surrogate_losses`, the number of tokens, and `surrogate_metrics`; arguments as there."""
    losses = surrogate_losses(log_probs, old_log_probs, advantages, mask, clip_range, dual_clip)
    return *masked_sum(losses, mask), surrogate_metrics(log_probs, old_log_probs, mask, clip_range)


def clipped_value_loss(
    values: Float[Array, "batch response_time"],
    old_values: Float[Array, "batch response_time"],
    returns: Float[Array, "batch response_time"],
    mask: Bool[Array, "batch response_time"],
    clip_range: float | None,
) -> tuple[Float32[Array, ""], Float32[Array, ""], dict[str, WeightedSum]]:
    """½ max((V − R)², (V_clip − R)²), V_clip within clip_range of the old value.

    Not in the paper but in its authors' code, and in that of 1909.08593.

    Args:
        values: estimates of the value model being trained.
        old_values: estimates at sampling time.
        returns: targets.
        mask: True on response tokens.
        clip_range: how far an estimate may usefully move in one batch of rollouts; None for the plain squared error.

    Returns:
        The sum, the number of tokens, and metrics as (sum, weight): "value_clip_fraction" (share of tokens where
        clipping decides the loss) and "value_error" (squared error without clipping).
    """
    values = jnp.where(mask, values.astype(jnp.float32), 0.0)
    old_values = jnp.where(mask, old_values.astype(jnp.float32), 0.0)
    returns = jnp.where(mask, returns.astype(jnp.float32), 0.0)
    error = jnp.square(values - returns)
    if clip_range is None:
        clipped_error = error
    else:
        movement = values - old_values
        clipped_values = old_values + jnp.clip(movement, -clip_range, clip_range)
        # Inside the range the two errors are one; computed by way of old_values they would differ in the last bit.
        clipped_error = jnp.where(jnp.abs(movement) > clip_range, jnp.square(clipped_values - returns), error)
    loss, weight = masked_sum(0.5 * jnp.maximum(error, clipped_error), mask)
    metrics = {
        "value_clip_fraction": masked_sum(clipped_error > error, mask),
        "value_error": masked_sum(error, mask),
    }
    return loss, weight, metrics


def _log_ratio(log_probs: Array, old_log_probs: Array, mask: Array) -> Float32[Array, "batch response_time"]:
    return jnp.where(mask, log_probs.astype(jnp.float32) - old_log_probs.astype(jnp.float32), 0.0)
