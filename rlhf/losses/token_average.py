"""How the losses of single tokens become the loss of a batch: what a long response weighs against a short one."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from rlhf.losses.masking import masked_sum

TokenAverage = Literal["tokens", "responses", "constant"]


def average_tokens(
    losses: Float[Array, "batch response_time"], mask: Bool[Array, "batch response_time"], kind: TokenAverage
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """The sum of the losses and what to divide it by.

    - "tokens": every token weighs the same, so a long response weighs more than a short one (PPO as in 1909.08593).
    - "responses": the mean of each response first, so every response weighs the same (2402.03300, equation 3).
    - "constant": the sum of each response over the longest possible length, the number of columns (2503.20783, section
      3.1). A response as one action has this gradient too, up to the constant (2402.14740).

    Args:
        losses: of each token.
        mask: True on response tokens.
        kind: which average.

    Returns:
        The weighted sum, and the number of tokens ("tokens") or of responses; rows without a token do not count.
    """
    if kind == "tokens":
        return masked_sum(losses, mask)
    sums = jnp.sum(jnp.where(mask, losses.astype(jnp.float32), 0.0), axis=1)
    lengths = jnp.sum(mask, axis=1, dtype=jnp.float32)
    divisor = jnp.maximum(lengths, 1.0) if kind == "responses" else jnp.float32(mask.shape[1])
    return jnp.sum(sums / divisor), jnp.sum(lengths > 0, dtype=jnp.float32)
