"""The key/value cache of decoding."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import lax
from jax.tree_util import register_dataclass
from jaxtyping import Array, Bool, Float, Int

from rlhf.models.config import ComputeConfig, ModelConfig


@register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of the tokens so far, for all layers.

    All rows of a batch write the same slot at the same time: prompts are left-padded, so that they end together. The cache
    is a value: writing returns a new one, which XLA lays over the old where it is carried through a loop or donated.

    Attributes:
        keys: rotated keys.
        values: values.
        positions: place of each slot's token in its sequence, virtual tokens counted; of no account where not valid.
        valid: True where a slot holds a real token; padding and slots not yet written are False.
        length: number of slots written, equal for all rows.
    """

    keys: Float[Array, "layers batch kv_heads slots head_dim"]
    values: Float[Array, "layers batch kv_heads slots head_dim"]
    positions: Int[Array, "batch slots"]
    valid: Bool[Array, "batch slots"]
    length: Int[Array, ""]

    @classmethod
    def create(cls, config: ModelConfig, compute: ComputeConfig, batch: int, slots: int) -> "KVCache":
        """An empty cache.

        Args:
            config: the model it is for.
            compute: gives the dtype.
            batch: number of rows.
            slots: room for prompt and response together, in tokens.
        """
        shape = (config.layers, batch, config.key_value_heads, slots, config.head_size)
        return cls(
            keys=jnp.zeros(shape, compute.dtype),
            values=jnp.zeros(shape, compute.dtype),
            positions=jnp.zeros((batch, slots), jnp.int32),
            valid=jnp.zeros((batch, slots), bool),
            length=jnp.zeros((), jnp.int32),
        )

    @property
    def slots(self) -> int:
        """Room for tokens."""
        return self.keys.shape[3]


def write_layer(
    stacked: Float[Array, "layers batch kv_heads slots head_dim"],
    new: Float[Array, "batch kv_heads time head_dim"],
    layer: Int[Array, ""],
    slot: Int[Array, ""],
) -> Float[Array, "layers batch kv_heads slots head_dim"]:
    """Writes the keys or values of new tokens into one layer, from `slot` on."""
    return lax.dynamic_update_slice(stacked, new[None].astype(stacked.dtype), (layer, 0, 0, slot, 0))


def read_layer(
    stacked: Float[Array, "layers batch kv_heads slots head_dim"], layer: Int[Array, ""]
) -> Float[Array, "batch kv_heads slots head_dim"]:
    """Keys or values of one layer."""
    return lax.dynamic_index_in_dim(stacked, layer, keepdims=False)
