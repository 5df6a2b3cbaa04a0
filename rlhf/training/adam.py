"""Adam (1412.6980) with moments that are brought up to date where they lie, and the clipping of gradients before it.

Both are optax's, but for what they cost on a CPU, where an update takes as long as the memory that it goes through. Where the
direction comes from moments that may yet be refused, XLA computes each moment in two places, to use it and to keep it, both
from the old one, and copies all old ones first because the second place writes over them. And a quotient for each gradient,
being dear, is stored before it is used. With a direction that comes from the moments that are kept, and one quotient for all
gradients, an update takes less than half the time and hardly any memory besides (benchmarks/README.md).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int


class AdamState(NamedTuple):
    """Adam's moments, in which an update that was not accepted has left no trace.

    Attributes:
        count: number of updates.
        mu: first moment of every parameter.
        nu: second moment of every parameter.
    """

    count: Int[Array, ""]
    mu: Any
    nu: Any


def scale_by_adam(
    b1: float, b2: float, eps: float, *, uncorrected: bool = False
) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_adam`, whose update takes the argument `accept` besides: False keeps the state as it is, bit for bit.

    Args:
        b1: β₁, decay of the first moment.
        b2: β₂, decay of the second moment.
        eps: ε, added to the root of the second moment.
        uncorrected: add it before the moment's bias is corrected, as in TensorFlow: √(1−β₂ᵗ)/(1−β₁ᵗ) · m / (√v + ε), which is
            Adam with ε/√(1−β₂ᵗ) for ε (end of section 2).
    """
    adam = optax.scale_by_adam(b1, b2, eps)

    def init(parameters):
        return AdamState(*adam.init(parameters))

    def update(gradients, state, parameters=None, *, accept: Bool[Array, ""] | bool = True, **_):
        _, proposed = adam.update(gradients, optax.ScaleByAdamState(*state))
        kept = jax.tree.map(lambda new, old: jnp.where(accept, new, old), AdamState(*proposed), state)
        grown = eps / jnp.sqrt(1 - b2**kept.count) if uncorrected else eps
        mean = optax.tree.bias_correction(kept.mu, b1, kept.count)
        square = optax.tree.bias_correction(kept.nu, b2, kept.count)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + grown), mean, square), kept

    return optax.GradientTransformationExtraArgs(init, update)


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` with one quotient for all gradients: those of a larger norm are scaled down to `limit`."""

    def update(gradients, state, parameters=None):
        factor = jnp.minimum(1.0, limit / optax.tree.norm(gradients))
        return jax.tree.map(lambda leaf: leaf * factor, gradients), state

    return optax.GradientTransformation(optax.init_empty_state, update)
