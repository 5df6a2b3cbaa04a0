"""The key/value cache of decoding."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax.numpy as jnp
from jax import lax
from jax.tree_util import register_dataclass
from jaxtyping import Array, Bool, Float, Int

from rlhf.models.config import ComputeConfig, ModelConfig
from rlhf.parallel.rules import constrain


@register_dataclass
@dataclass(frozen=True)
class LayerCache:
    """Keys and values of the tokens so far, for one layer.

    Attributes:
        keys: rotated keys.
        values: values.
    """

    keys: Float[Array, "batch kv_heads slots head_dim"]
    values: Float[Array, "batch kv_heads slots head_dim"]

    @classmethod
    def create(cls, config: ModelConfig, compute: ComputeConfig, batch: int, slots: int) -> "LayerCache":
        """An empty cache of a layer; arguments as for `KVCache.create`."""
        shape = (batch, config.key_value_heads, slots, config.head_size)
        return cls(jnp.zeros(shape, compute.dtype), jnp.zeros(shape, compute.dtype))

    def write(
        self,
        keys: Float[Array, "batch kv_heads time head_dim"],
        values: Float[Array, "batch kv_heads time head_dim"],
        slot: Int[Array, ""] | int,
    ) -> "LayerCache":
        """The cache with the keys and values of new tokens from `slot` on."""

        def put(old, new):
            written = lax.dynamic_update_slice(old, new.astype(old.dtype), (0, 0, slot, 0))
            return constrain(written, ("batch", "kv_heads", None, None))

        return LayerCache(put(self.keys, keys), put(self.values, values))


@register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of the tokens so far, for all layers.

    All rows of a batch write the same slot at the same time: prompts are left-padded, so that they end together. The cache
    is a value: writing returns a new one, which XLA lays over the old where it is carried through a loop or donated. Every
    layer has arrays of its own: out of a stacked array each layer's part would be copied at every token before it is read.

    Attributes:
        layers: of each layer.
        positions: place of each slot's token in its sequence, virtual tokens counted; of no account where not valid.
        valid: True where a slot holds a real token; padding and slots not yet written are False.
        length: number of slots written, equal for all rows.
    """

    layers: tuple[LayerCache, ...]
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
        return cls(
            layers=tuple(LayerCache.create(config, compute, batch, slots) for _ in range(config.layers)),
            positions=jnp.zeros((batch, slots), jnp.int32),
            valid=jnp.zeros((batch, slots), bool),
            length=jnp.zeros((), jnp.int32),
        )

    def extended(
        self, layers: Sequence[LayerCache], positions: Int[Array, "batch time"], valid: Bool[Array, "batch time"]
    ) -> "KVCache":
        """The cache with new tokens.

        Args:
            layers: of each layer, with the tokens' keys and values written from slot `length` on.
            positions: places of the tokens in their sequences.
            valid: True on real tokens.
        """
        write = (0, self.length)
        return KVCache(
            layers=tuple(layers),
            positions=lax.dynamic_update_slice(self.positions, positions.astype(jnp.int32), write),
            valid=lax.dynamic_update_slice(self.valid, valid, write),
            length=self.length + positions.shape[1],
        )

    def grown(self, slots: int) -> "KVCache":
        """The cache with room for so many more tokens."""

        def longer(array, axis):
            return jnp.pad(array, [(0, slots if number == axis else 0) for number in range(array.ndim)])

        return replace(
            self,
            layers=tuple(LayerCache(longer(layer.keys, 2), longer(layer.values, 2)) for layer in self.layers),
            positions=longer(self.positions, 1),
            valid=longer(self.valid, 1),
        )

    @property
    def slots(self) -> int:
        """Room for tokens."""
        return self.valid.shape[1]
