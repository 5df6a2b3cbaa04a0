"""The feed-forward part of a block."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rlhf.models.config import ComputeConfig, ModelConfig
from rlhf.models.projection import Projection

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


class Mlp(nnx.Module):
    """The feed-forward part, plain or gated (2002.05202).

    Attributes:
        hidden_adapter: None, or a module called on the hidden features, whose result is projected down instead.
    """

    def __init__(self, config: ModelConfig, compute: ComputeConfig, rngs: nnx.Rngs):
        self.config = config
        self.dtype = jnp.dtype(compute.dtype)
        shared = {"dtype": compute.parameter_dtype, "bias": config.mlp_bias, "rngs": rngs}
        stream, hidden = {"embed": config.width}, {"mlp": config.mlp_width}
        self.up = Projection(stream, hidden, std=config.initializer_std, **shared)
        if config.gated_mlp:
            self.gate = Projection(stream, hidden, std=config.initializer_std, **shared)
        self.down = Projection(hidden, stream, std=config.residual_std, bias_axes=("residual",), **shared)
        self.hidden_adapter = nnx.data(None)

    def __call__(self, hidden: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
        """What the block adds to the residual stream."""
        activation = ACTIVATIONS[self.config.activation]
        inner = self.up(hidden, self.dtype)
        inner = activation(self.gate(hidden, self.dtype)) * inner if self.config.gated_mlp else activation(inner)
        if self.hidden_adapter is not None:
            inner = self.hidden_adapter(inner)
        return self.down(inner, self.dtype)
