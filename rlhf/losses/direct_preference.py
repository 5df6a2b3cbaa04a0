"""Learning from comparisons without a reward model: the policy's own log-ratio to a reference is the reward.

A log-ratio is log π(y|x) − log π_ref(y|x), *summed* over the answer's tokens, and β times it is the implicit reward (2305.18290,
equation 5).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

WeightedSum = tuple[Float32[Array, ""], Float32[Array, ""]]


def direct_preference_loss(
    chosen: Float[Array, " batch"],
    rejected: Float[Array, " batch"],
    weight: Float[Array, " batch"],
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> WeightedSum:
    """−(1 − ε) log σ(βh) − ε log σ(−βh), h the difference of the log-ratios (DPO, 2305.18290, equation 7).

    With ε = 0 it is DPO; ε > 0 is its conservative form for labels of which a share ε is wrong (cDPO), whose minimum is at
    βh = log((1 − ε)/ε) and not at infinity.

    Args:
        chosen: log-ratios of the preferred answers, in nats.
        rejected: log-ratios of the other answers.
        weight: of each comparison; 0 leaves it out.
        beta: how strongly the policy is held to the reference.
        label_smoothing: ε, share of the labels taken to be wrong.

    Returns:
        The weighted sum, and the sum of weights.
    """
    logits = beta * _difference(chosen, rejected, weight)
    losses = -(1 - label_smoothing) * jax.nn.log_sigmoid(logits) - label_smoothing * jax.nn.log_sigmoid(-logits)
    return _weighted(losses, weight)


def identity_preference_loss(
    chosen: Float[Array, " batch"], rejected: Float[Array, " batch"], weight: Float[Array, " batch"], *, beta: float
) -> WeightedSum:
    """(h − 1/(2β))²: the difference of the log-ratios has a goal instead of growing for ever (IPO, 2310.12036, equation 17).

    Args:
        chosen: log-ratios of the preferred answers, in nats.
        rejected: log-ratios of the other answers.
        weight: of each comparison; 0 leaves it out.
        beta: the paper's τ.

    Returns:
        The weighted sum, and the sum of weights.
    """
    return _weighted(jnp.square(_difference(chosen, rejected, weight) - 0.5 / beta), weight)


def prospect_loss(
    log_ratio: Float[Array, " batch"],
    reference_point: Float[Array, ""] | float,
    desirable: Bool[Array, " batch"],
    weight: Float[Array, " batch"],
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> WeightedSum:
    """λ − λ σ(±β(log-ratio − z₀)) of single answers, + for good ones, − for bad ones (KTO, 2402.01306, equation 8).

    Args:
        log_ratio: of each answer, in nats.
        reference_point: z₀, the KL to the reference in nats; no gradient goes through it. See `prospect_reference_point`.
        desirable: the answer is a good one.
        weight: of each answer; 0 leaves it out.
        beta: how strongly the policy is held to the reference.
        desirable_weight: λ of good answers.
        undesirable_weight: λ of bad ones.

    Returns:
        The weighted sum, and the sum of weights.
    """
    difference = jnp.where(weight > 0, log_ratio.astype(jnp.float32), 0.0) - jax.lax.stop_gradient(reference_point)
    value = jax.nn.sigmoid(beta * jnp.where(desirable, difference, -difference))
    scale = jnp.where(desirable, desirable_weight, undesirable_weight)
    return _weighted(scale * (1.0 - value), weight)


def prospect_reference_point(mismatched: Float[Array, " batch"], weight: Float[Array, " batch"]) -> Float32[Array, ""]:
    """z₀ = max(0, mean log-ratio of answers to other prompts), KTO's estimate of the KL to the reference (2402.01306, 4.1).

    Args:
        mismatched: log-ratio of another prompt's answer after each prompt, in nats.
        weight: of each row; 0 leaves it out.
    """
    total, count = _weighted(jnp.where(weight > 0, mismatched.astype(jnp.float32), 0.0), weight)
    return jax.lax.stop_gradient(jnp.maximum(total / jnp.maximum(count, jnp.finfo(jnp.float32).tiny), 0.0))


def _difference(chosen: Array, rejected: Array, weight: Array) -> Float32[Array, " batch"]:
    return jnp.where(weight > 0, chosen.astype(jnp.float32) - rejected.astype(jnp.float32), 0.0)


def _weighted(values: Array, weight: Array) -> WeightedSum:
    weight = weight.astype(jnp.float32)
    return jnp.sum(weight * values), jnp.sum(weight)
