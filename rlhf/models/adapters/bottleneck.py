"""Bottleneck adapters (1902.00751): a small network on what each part of a block adds to the residual stream.

    h + W_up f(W_down h + b_down) + b_up

The up-projection starts at 0, so the model is unchanged at first.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rlhf.models.config import ModelConfig
from rlhf.models.partition import AdapterParam
from rlhf.models.projection import project


class Bottleneck(nnx.Module):
    """The small networks after one part of the blocks, stacked.

    Args:
        config: the model it is for.
        width: inner size.
        activation: f.
        rngs: stream `params` draws the down-projection.

    Attributes:
        down, down_bias: shapes [layers, width of the stream, inner] and [layers, inner].
        up, up_bias: shapes [layers, inner, width of the stream] and [layers, width of the stream].
    """

    def __init__(self, config: ModelConfig, width: int, activation: Callable[[jax.Array], jax.Array], rngs: nnx.Rngs):
        self.activation = activation
        layers, stream = config.layers, config.width
        drawn = config.initializer_std * jax.random.normal(rngs.params(), (layers, stream, width), jnp.float32)
        self.down = AdapterParam(drawn, axes=("layers", "embed", None))
        self.down_bias = AdapterParam(jnp.zeros((layers, width)), axes=("layers", None))
        self.up = AdapterParam(jnp.zeros((layers, width, stream)), axes=("layers", None, "embed"))
        self.up_bias = AdapterParam(jnp.zeros((layers, stream)), axes=("layers", "residual"))

    def __call__(self, hidden: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
        """What is added to the stream in the place of `hidden`, in one layer."""
        down, down_bias, up, up_bias = (
            part[...].astype(hidden.dtype) for part in (self.down, self.down_bias, self.up, self.up_bias)
        )
        return hidden + project(self.activation(project(hidden, down) + down_bias), up) + up_bias
