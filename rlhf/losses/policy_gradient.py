"""Proximal policy optimisation (1707.06347): the clipped losses of policy and value model."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from rlhf.losses.masking import masked_sum

WeightedSum = tuple[Float32[Array, ""], Float32[Array, ""]]


def clipped_surrogate(
    log_probs: Float[Array, "batch response_time"],
    old_log_probs: Float[Array, "batch response_time"],
    advantages: Float[Array, "batch response_time"],
    mask: Bool[Array, "batch response_time"],
    clip_range: float,
) -> tuple[Float32[Array, ""], Float32[Array, ""], dict[str, WeightedSum]]:
    """−min(ρA, clip(ρ, 1 ± clip_range)A) with ρ = π/π_old per token (1707.06347, equation 7), to be minimised.

    Args:
        log_probs: of the sampled tokens under the policy being trained.
        old_log_probs: of the same tokens under the policy that sampled them.
        advantages: of each token.
        mask: True on response tokens.
        clip_range: how far the ratio may leave 1 before it stops being rewarded; 0.2 in the paper.

    Returns:
        The sum, the number of tokens, and metrics as (sum, weight): "clip_fraction" (share of tokens whose ratio is out
        of range), "approximate_kl" (k2 estimate of the distance moved since sampling, in nats per token) and "ratio"
        (mean ρ).
    """
    log_ratio = jnp.where(mask, log_probs.astype(jnp.float32) - old_log_probs.astype(jnp.float32), 0.0)
    ratio = jnp.exp(log_ratio)
    advantages = jnp.where(mask, advantages.astype(jnp.float32), 0.0)
    clipped_ratio = jnp.clip(ratio, 1.0 - clip_range, 1.0 + clip_range)
    loss, weight = masked_sum(-jnp.minimum(ratio * advantages, clipped_ratio * advantages), mask)
    metrics = {
        "clip_fraction": masked_sum(jnp.abs(ratio - 1.0) > clip_range, mask),
        "approximate_kl": masked_sum(0.5 * jnp.square(log_ratio), mask),
        "ratio": masked_sum(ratio, mask),
    }
    return loss, weight, metrics


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
