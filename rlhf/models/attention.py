"""Causal self-attention with grouped key/value heads and rotary positions.

Shapes: queries are [batch, time, kv_heads, group, head_dim], keys and values [batch, kv_heads, slots, head_dim], so that
the heads that share keys (grouped-query attention, 2305.13245) meet them in one product and keys are never repeated.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int

from rlhf.models.config import ComputeConfig, ModelConfig
from rlhf.models.projection import Projection

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
    """Projections to queries, keys and values, the mix of values, and the projection back to the residual stream.

    Attributes:
        prefix: None, or a module called without arguments that gives keys and values, [kv_heads, length, head_dim] each,
            to which every query may attend besides those of its row, and which are not rotated.
    """

    def __init__(self, config: ModelConfig, compute: ComputeConfig, rngs: nnx.Rngs):
        self.config = config
        self.dtype = jnp.dtype(compute.dtype)
        shared = {"dtype": compute.parameter_dtype, "bias": config.attention_bias, "rngs": rngs}
        stream = {"embed": config.width}
        heads = {"heads": config.heads, "head_dim": config.head_size}
        kv_heads = {"kv_heads": config.key_value_heads, "head_dim": config.head_size}
        self.query = Projection(stream, heads, std=config.initializer_std, **shared)
        self.key = Projection(stream, kv_heads, std=config.initializer_std, **shared)
        self.value = Projection(stream, kv_heads, std=config.initializer_std, **shared)
        self.output = Projection(heads, stream, std=config.residual_std, bias_axes=("residual",), **shared)
        self.prefix = nnx.data(None)

    def queries(
        self, hidden: Float[Array, "batch time width"], rotation: Rotation | None
    ) -> Float[Array, "batch time kv_heads group head_dim"]:
        """Queries, rotated to their positions."""
        queries = self.query(hidden, self.dtype)
        if rotation is not None:
            queries = rotate(queries, rotation)
        batch, time, _, head_dim = queries.shape
        return queries.reshape(batch, time, self.config.key_value_heads, -1, head_dim)

    def keys_and_values(
        self, hidden: Float[Array, "batch time width"], rotation: Rotation | None
    ) -> tuple[Float[Array, "batch kv_heads time head_dim"], Float[Array, "batch kv_heads time head_dim"]]:
        """Keys, rotated to their positions, and values."""
        keys, values = self.key(hidden, self.dtype), self.value(hidden, self.dtype)
        if rotation is not None:
            keys = rotate(keys, rotation)
        return keys.swapaxes(1, 2), values.swapaxes(1, 2)

    def mix(
        self,
        queries: Float[Array, "batch time kv_heads group head_dim"],
        keys: Float[Array, "batch kv_heads slots head_dim"],
        values: Float[Array, "batch kv_heads slots head_dim"],
        mask: Bool[Array, "batch time slots"],
    ) -> Float[Array, "batch time width"]:
        """Attends, to the prefix too where there is one, and projects back to the residual stream."""
        if self.prefix is not None:
            keys, values, mask = _prepend(*self.prefix(), keys, values, mask)
        mixed = attend(queries, keys, values, mask)
        batch, time, _, _, head_dim = mixed.shape
        return self.output(mixed.reshape(batch, time, self.config.heads, head_dim), self.dtype)


def _prepend(
    prefix_keys: Float[Array, "kv_heads length head_dim"],
    prefix_values: Float[Array, "kv_heads length head_dim"],
    keys: Float[Array, "batch kv_heads slots head_dim"],
    values: Float[Array, "batch kv_heads slots head_dim"],
    mask: Bool[Array, "batch time slots"],
):
    def join(prefix, own):
        repeated = jnp.broadcast_to(prefix.astype(own.dtype), (len(own), *prefix.shape))
        return jnp.concatenate([repeated, own], axis=2)

    length = prefix_keys.shape[1]
    mask = jnp.pad(mask, ((0, 0), (0, 0), (length, 0)), constant_values=True)
    return join(prefix_keys, keys), join(prefix_values, values), mask
