"""Sums and means over the real positions of a padded array, in float32.

What lies under the mask never enters a result or a gradient, not even as 0 · NaN: values are replaced, not multiplied.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32


def masked_sum(
    values: Float[Array, " *shape"] | Bool[Array, " *shape"], mask: Bool[Array, " *shape"]
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """Adds up the real positions.

    Args:
        values: any shape; truth values count as 0 and 1.
        mask: True on real positions.

    Returns:
        The sum, and the number of positions in it.
    """
    total = jnp.sum(jnp.where(mask, values.astype(jnp.float32), 0.0))
    return total, jnp.sum(mask, dtype=jnp.float32)


def masked_mean(values: Float[Array, " *shape"], mask: Bool[Array, " *shape"]) -> Float32[Array, ""]:
    """Averages the real positions; 0 when there are none.

    Args:
        values: any shape.
        mask: True on real positions.

    Returns:
        The mean over all axes.
    """
    total, weight = masked_sum(values, mask)
    return total / jnp.maximum(weight, 1.0)
