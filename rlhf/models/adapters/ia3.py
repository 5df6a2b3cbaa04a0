"""IA3 (2205.05638): factors on keys, values and the hidden features of the feed-forward part, 1 at first."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rlhf.models.partition import AdapterParam
from rlhf.models.projection import Projection


class OutputScale(nnx.Module):
    """Factors on the outputs of one kind of projection, its bias included, in all layers.

    Attributes:
        scale: shape [layers, *outputs].
    """

    def __init__(self, projection: Projection):
        kernel = projection.kernel
        first_output = 1 + projection.input_axes
        axes = ("layers", *kernel.axes[first_output:])
        self.scale = AdapterParam(jnp.ones((kernel.shape[0], *kernel.shape[first_output:])), axes=axes)

    def __call__(self, inputs, outputs: Float[Array, "batch time *outputs"], kernel, bias):
        """The scaled outputs of one layer's projection."""
        return outputs * self.scale[...].astype(outputs.dtype)


class HiddenScale(nnx.Module):
    """Factors on the hidden features of the feed-forward parts.

    Attributes:
        scale: shape [layers, mlp].
    """

    def __init__(self, down: Projection):
        self.scale = AdapterParam(jnp.ones(down.kernel.shape[:2]), axes=down.kernel.axes[:2])

    def __call__(self, hidden: Float[Array, "batch time mlp"]) -> Float[Array, "batch time mlp"]:
        """The scaled features of one layer."""
        return hidden * self.scale[...].astype(hidden.dtype)
