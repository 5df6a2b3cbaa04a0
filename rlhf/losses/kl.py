"""The penalty that keeps a policy near its reference: estimators, coefficient, and its place in the reward."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

KLKind = Literal["k1", "k2", "k3"]


def kl_estimate(
    log_probs: Float[Array, " *shape"], reference_log_probs: Float[Array, " *shape"], kind: KLKind = "k1"
) -> Float32[Array, " *shape"]:
    """Estimates KL(policy ‖ reference) from tokens that the policy sampled, token by token.

    With d = log π − log π_ref of the sampled token, after J. Schulman, "Approximating KL divergence" (2020):

    - "k1" = d: unbiased, of either sign. For rewards; useless as a loss, its gradient is 0 in expectation.
    - "k2" = d²/2: biased, never negative. As a loss its gradient is that of the divergence.
    - "k3" = e^(−d) − 1 + d: unbiased, never negative, of lower variance near the reference. As a loss it has the
      gradient of the opposite direction, KL(reference ‖ policy).

    Both log-probabilities must be taken at the temperature, and over the token set, that the sampler used: otherwise no
    kind is unbiased, and k1 stays negative.

    Args:
        log_probs: of the sampled tokens under the policy.
        reference_log_probs: of the same tokens under the reference.
        kind: which estimator.

    Returns:
        One estimate per token in nats; positions that are padding hold whatever the formula gives there.
    """
    difference = log_probs.astype(jnp.float32) - reference_log_probs.astype(jnp.float32)
    if kind == "k1":
        return difference
    if kind == "k2":
        return 0.5 * jnp.square(difference)
    if kind == "k3":
        return jnp.expm1(-difference) + difference
    raise ValueError(f'kl_estimate: kind must be "k1", "k2" or "k3", not {kind!r}')


def adaptive_kl_coefficient(
    coefficient: Float[Array, ""] | float,
    kl: Float[Array, ""] | float,
    *,
    target: float,
    horizon: float,
    episodes: int,
) -> Float32[Array, ""]:
    """Moves the coefficient so that the divergence approaches a target; called once a batch of rollouts.

    coefficient · (1 + clip(kl/target − 1, ±0.2) · episodes/horizon): the proportional controller of 1909.08593 in
    the form its authors' code gives it. The coefficient is part of the training state and belongs in the checkpoint.

    Args:
        coefficient: the present coefficient.
        kl: divergence of the batch in nats, *summed* over a response's tokens and averaged over responses.
        target: divergence to aim at, in the same unit.
        horizon: episodes in which a clipped error changes the coefficient by about a fifth.
        episodes: responses in the batch.

    Returns:
        The coefficient for the next batch.
    """
    error = jnp.clip(jnp.asarray(kl, jnp.float32) / target - 1.0, -0.2, 0.2)
    return coefficient * (1.0 + error * episodes / horizon)


def kl_shaped_rewards(
    score: Float[Array, " batch"],
    kl: Float[Array, "batch response_time"],
    mask: Bool[Array, "batch response_time"],
    coefficient: Float[Array, ""] | float,
) -> Float32[Array, "batch response_time"]:
    """Rewards token by token: −coefficient · kl everywhere, and the score at the last response token.

    Equation 2 of 2203.02155 without its pretraining term, spread over the tokens as in 1909.08593.

    Args:
        score: one score a response.
        kl: estimate per token.
        mask: True on response tokens (with the end token, where there is one): a run from column 0.
        coefficient: weight of the penalty.

    Returns:
        Rewards, 0 outside the mask. A row without response tokens gets none, its score included.
    """
    next_is_response = jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))
    is_last = mask & ~next_is_response
    penalty = jnp.where(mask, -coefficient * kl.astype(jnp.float32), 0.0)
    return penalty + jnp.where(is_last, score.astype(jnp.float32)[:, None], 0.0)
