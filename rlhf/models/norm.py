"""Normalisation of features."""

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from rlhf.models import parameters
from rlhf.models.config import ComputeConfig, ModelConfig
from rlhf.models.projection import Axes


class Norm(nnx.Module):
    """Root-mean-square (1910.07467) or layer normalisation, with float32 statistics.

    Args:
        config: kind and epsilon.
        compute: dtype of the parameters.
        features: the trailing axes that are normalised together; None for the residual stream.
    """

    def __init__(self, config: ModelConfig, compute: ComputeConfig, features: Axes | None = None):
        self.config = config
        features = {"residual": config.width} if features is None else features
        shape, axes = tuple(features.values()), tuple(features)
        start = parameters.zeros if config.norm_scale_from_one else parameters.ones
        self.scale = start(shape, dtype=compute.parameter_dtype, axes=axes)
        if config.norm == "layer":
            self.bias = parameters.zeros(shape, dtype=compute.parameter_dtype, axes=axes)

    def __call__(self, hidden: Float[Array, "*rows_and_features"]) -> Float[Array, "*rows_and_features"]:
        """Normalises the last axes."""
        axes = tuple(range(-self.scale.ndim, 0))
        wide = hidden.astype(jnp.float32)
        if self.config.norm == "layer":
            wide = wide - wide.mean(axis=axes, keepdims=True)
        variance = jnp.square(wide).mean(axis=axes, keepdims=True)
        scale = self.scale.astype(jnp.float32) + self.config.norm_scale_from_one
        normalised = wide * lax.rsqrt(variance + self.config.norm_epsilon) * scale
        if self.config.norm == "layer":
            normalised = normalised + self.bias.astype(jnp.float32)
        return normalised.astype(hidden.dtype)
