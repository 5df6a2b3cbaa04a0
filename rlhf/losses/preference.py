"""Learning a score from comparisons: the Bradley–Terry loss of reward models."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32


def pairwise_loss(
    chosen: Float[Array, "*batch"],
    rejected: Float[Array, "*batch"],
    *,
    margin: Float[Array, "*batch"] | float = 0.0,
    centering: float = 0.0,
    weight: Float[Array, "*batch"] | None = None,
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """−log σ(chosen − rejected − margin) + centering · (chosen + rejected)², weighted and summed.

    The first term is equation 1 of 2203.02155, with the margin of equation 2 of 2307.09288. The K(K−1)/2 comparisons of
    one ranking each weigh 2/(K(K−1)), so that a prompt counts once whatever K is. The loss of differences leaves the
    scores free up to a constant; the second term pulls them towards 0 on average (2312.09244).

    Args:
        chosen: scores of the preferred answers.
        rejected: scores of the other answers.
        margin: difference that is asked for; 0 for the plain loss.
        centering: strength of the pull towards 0; about 0.01, or 0 for none.
        weight: weight of each comparison; 0 leaves the row out whatever it holds. None for 1.

    Returns:
        The weighted sum, and the sum of weights.
    """
    weight = _weights(chosen, weight)
    chosen = jnp.where(weight > 0, chosen.astype(jnp.float32), 0.0)
    rejected = jnp.where(weight > 0, rejected.astype(jnp.float32), 0.0)
    margin = jnp.where(weight > 0, jnp.asarray(margin, jnp.float32), 0.0)
    losses = -jax.nn.log_sigmoid(chosen - rejected - margin) + centering * jnp.square(chosen + rejected)
    return jnp.sum(weight * losses), jnp.sum(weight)


def pairwise_accuracy(
    chosen: Float[Array, "*batch"],
    rejected: Float[Array, "*batch"],
    *,
    weight: Float[Array, "*batch"] | None = None,
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """Share of comparisons that the scores order as the data does; equal scores count one half.

    Args:
        chosen: scores of the preferred answers.
        rejected: scores of the other answers.
        weight: weight of each comparison; 0 leaves the row out. None for 1.

    Returns:
        The weighted sum, and the sum of weights.
    """
    weight = _weights(chosen, weight)
    correct = jnp.where(chosen == rejected, 0.5, (chosen > rejected).astype(jnp.float32))
    return jnp.sum(weight * correct), jnp.sum(weight)


def _weights(scores: Float[Array, "*batch"], weight: Float[Array, "*batch"] | None) -> Float32[Array, "*batch"]:
    return jnp.ones(scores.shape, jnp.float32) if weight is None else weight.astype(jnp.float32)
