"""How much better than expected each token was: whitening and generalised advantage estimation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from rlhf.losses.masking import masked_mean

VARIANCE_FLOOR = 1e-8


def whiten(
    values: Float[Array, " *shape"], mask: Bool[Array, " *shape"], *, shift_mean: bool = True
) -> Float32[Array, " *shape"]:
    """Scales the real positions to variance 1, and mean 0 unless told to keep it.

    The statistics are over all axes: give it the whole batch, of all devices, not a micro-batch. The variance is the
    population's (divided by n, not n − 1), as in the code of 1909.08593: it is defined for a single position, and does
    not depend on how a batch is cut.

    Args:
        values: any shape.
        mask: True on real positions.
        shift_mean: False keeps the mean (used for rewards, whose sign has a meaning).

    Returns:
        Whitened values, 0 outside the mask.
    """
    values = jnp.where(mask, values.astype(jnp.float32), 0.0)
    mean = masked_mean(values, mask)
    variance = masked_mean(jnp.square(values - mean), mask)
    whitened = (values - mean) * jax.lax.rsqrt(variance + VARIANCE_FLOOR)
    return jnp.where(mask, whitened if shift_mean else whitened + mean, 0.0)


def generalized_advantages(
    rewards: Float[Array, "batch response_time"],
    values: Float[Array, "batch response_time"],
    mask: Bool[Array, "batch response_time"],
    *,
    discount: float,
    decay: float,
) -> tuple[Float32[Array, "batch response_time"], Float32[Array, "batch response_time"]]:
    """Generalised advantage estimation (1506.02438, equation 16) over responses that end.

    δ_t = r_t + γ V_{t+1} − V_t and A_t = δ_t + γλ A_{t+1}; after a response's last token both V and A are 0, so nothing
    is taken from padding.

    Args:
        rewards: reward of each token.
        values: value estimate before each token is emitted.
        mask: True on response tokens: a run from column 0.
        discount: γ; 1 in most work on language models.
        decay: λ; 0 trusts the values, 1 trusts the rewards.

    Returns:
        Advantages, and returns (advantages + values, what the value model is to learn); both 0 outside the mask.
    """
    rewards = jnp.where(mask, rewards.astype(jnp.float32), 0.0)
    values = jnp.where(mask, values.astype(jnp.float32), 0.0)
    next_values = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    errors = rewards + discount * next_values - values

    def step(next_advantage, error):
        advantage = error + discount * decay * next_advantage
        return advantage, advantage

    start = jnp.zeros_like(errors[:, 0])
    _, advantages = jax.lax.scan(step, start, errors.T, reverse=True)
    return advantages.T, advantages.T + values


def explained_variance(
    values: Float[Array, " *shape"], returns: Float[Array, " *shape"], mask: Bool[Array, " *shape"]
) -> Float32[Array, ""]:
    """1 − Σ(return − value)² / Σ(return − mean return)²: 1 for a perfect value model, 0 for a constant one.

    Args:
        values: value estimates.
        returns: what they estimate.
        mask: True on real positions.

    Returns:
        The share of variance explained; may be negative. 0 when the returns do not vary.
    """
    error = masked_mean(jnp.square(returns - values), mask)
    variance = masked_mean(jnp.square(returns - masked_mean(returns, mask)), mask)
    return jnp.where(variance > 0, 1.0 - error / jnp.where(variance > 0, variance, 1.0), 0.0)
