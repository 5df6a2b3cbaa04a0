"""Causal self-attention with grouped key/value heads and rotary positions.

Shapes: queries are [batch, time, kv_heads, group, head_dim], keys and values [batch, kv_heads, slots, head_dim], so that
the heads that share keys (grouped-query attention, 2305.13245) meet them in one product and keys are never repeated.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int

from rlhf.models import parameters
from rlhf.models.config import ComputeConfig, ModelConfig
from rlhf.models.projection import project

Rotation = tuple[Float32[Array, "batch time half"], Float32[Array, "batch time half"]]
"""Cosines and sines of every position's angles, [batch, time, head_dim / 2] each."""


def rotation(positions: Int[Array, "batch time"], head_dim: int, theta: float) -> Rotation:
    """Angles of rotary position encoding (2104.09864): position · theta^(-2i / head_dim) for feature pair i."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    heads: Float[Array, "batch time *heads head_dim"], rotation: Rotation
) -> Float[Array, "batch time *heads head_dim"]:
    """Rotates feature i of the first half of each head against feature i of the second half, in float32."""
    over_heads = tuple(range(2, heads.ndim - 1))
    cosine, sine = (jnp.expand_dims(part, over_heads) for part in rotation)
    first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return rotated.astype(heads.dtype)


def attend(
    queries: Float[Array, "batch time kv_heads group head_dim"],
    keys: Float[Array, "batch kv_heads slots head_dim"],
    values: Float[Array, "batch kv_heads slots head_dim"],
    mask: Bool[Array, "batch time slots"],
) -> Float[Array, "batch time kv_heads group head_dim"]:
    """Scaled dot-product attention; scores and softmax are float32.

    Args:
        queries: queries, grouped by the key/value head they share.
        keys: keys.
        values: values.
        mask: True where a query may look. A query that may look nowhere gets the mean of the values: finite, and of no
            use to anybody.

    Returns:
        The mix of values for each query.
    """
    scores = jnp.einsum("btkgh,bksh->bkgts", queries, keys, preferred_element_type=jnp.float32)
    scores = scores * queries.shape[-1] ** -0.5
    lowest = jnp.finfo(jnp.float32).min  # not -inf, which would make a row without any True a row of NaN
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, lowest), axis=-1)
    return jnp.einsum("bkgts,bksh->btkgh", weights.astype(values.dtype), values)


class Attention(nnx.Module):
    """Projections to queries, keys and values, and back to the residual stream."""

    def __init__(self, config: ModelConfig, compute: ComputeConfig, rngs: nnx.Rngs):
        self.config = config
        self.dtype = jnp.dtype(compute.dtype)
        dtype, std = compute.parameter_dtype, config.initializer_std
        width, heads, kv_heads, head_dim = config.width, config.heads, config.key_value_heads, config.head_size

        def heads_of(heads: int, axis: str) -> nnx.Param:
            axes = ("embed", axis, "head_dim")
            return parameters.normal(rngs, (width, heads, head_dim), std=std, dtype=dtype, axes=axes)

        self.query_kernel = heads_of(heads, "heads")
        self.key_kernel = heads_of(kv_heads, "kv_heads")
        self.value_kernel = heads_of(kv_heads, "kv_heads")
        self.output_kernel = parameters.normal(
            rngs, (heads, head_dim, width), std=residual_std(config), dtype=dtype, axes=("heads", "head_dim", "embed")
        )
        if config.attention_bias:
            self.query_bias = parameters.zeros((heads, head_dim), dtype=dtype, axes=("heads", "head_dim"))
            self.key_bias = parameters.zeros((kv_heads, head_dim), dtype=dtype, axes=("kv_heads", "head_dim"))
            self.value_bias = parameters.zeros((kv_heads, head_dim), dtype=dtype, axes=("kv_heads", "head_dim"))
            self.output_bias = parameters.zeros((width,), dtype=dtype, axes=("residual",))

    def queries(
        self, hidden: Float[Array, "batch time width"], rotation: Rotation | None
    ) -> Float[Array, "batch time kv_heads group head_dim"]:
        """Queries, rotated to their positions."""
        queries = project(hidden, self.query_kernel.astype(self.dtype))
        if self.config.attention_bias:
            queries = queries + self.query_bias.astype(self.dtype)
        if rotation is not None:
            queries = rotate(queries, rotation)
        batch, time, _, head_dim = queries.shape
        return queries.reshape(batch, time, self.config.key_value_heads, -1, head_dim)

    def keys_and_values(
        self, hidden: Float[Array, "batch time width"], rotation: Rotation | None
    ) -> tuple[Float[Array, "batch kv_heads time head_dim"], Float[Array, "batch kv_heads time head_dim"]]:
        """Keys, rotated to their positions, and values."""
        keys = project(hidden, self.key_kernel.astype(self.dtype))
        values = project(hidden, self.value_kernel.astype(self.dtype))
        if self.config.attention_bias:
            keys = keys + self.key_bias.astype(self.dtype)
            values = values + self.value_bias.astype(self.dtype)
        if rotation is not None:
            keys = rotate(keys, rotation)
        return keys.swapaxes(1, 2), values.swapaxes(1, 2)

    def project_out(
        self, mixed: Float[Array, "batch time kv_heads group head_dim"]
    ) -> Float[Array, "batch time width"]:
        """Back to the residual stream."""
        batch, time, _, _, head_dim = mixed.shape
        heads = mixed.reshape(batch, time, self.config.heads, head_dim)
        output = project(heads, self.output_kernel.astype(self.dtype))
        return output + self.output_bias.astype(self.dtype) if self.config.attention_bias else output


def residual_std(config: ModelConfig) -> float:
    """Initial standard deviation of what writes into the residual stream.

    Smaller by the square root of the number of writes, two a block, so that the stream's variance does not grow with
    depth (GPT-2).
    """
    return config.initializer_std / (2 * config.layers) ** 0.5
