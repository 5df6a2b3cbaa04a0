"""Causal self-attention with grouped key/value heads.

Shapes: queries are [batch, time, kv_heads, group, head_dim], keys and values [batch, kv_heads, slots, head_dim], so that
the heads that share keys (grouped-query attention, 2305.13245) meet them in one product and keys are never repeated.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from rlhf.models.cache import LayerCache
from rlhf.models.config import ComputeConfig, ModelConfig
from rlhf.models.kernels.call import AttentionCall
from rlhf.models.kernels.choice import attend_by_kernel, choose_kernel
from rlhf.models.norm import Norm
from rlhf.models.placement import Placement
from rlhf.models.positions import alibi_slopes, rotate
from rlhf.models.projection import Projection
from rlhf.models.softmax_attention import attend, attend_in_order
from rlhf.parallel.rules import constrain


class Attention(nnx.Module):
    """Projections to queries, keys and values, the mix of values, and the projection back to the residual stream.

    Attributes:
        prefix: None, or a module called without arguments that gives keys and values, [kv_heads, length, head_dim] each,
            to which every query may attend besides those of its row, and which are not rotated.
    """

    def __init__(self, config: ModelConfig, compute: ComputeConfig, rngs: nnx.Rngs):
        self.config = config
        self.dtype = jnp.dtype(compute.dtype)
        self.implementation = compute.attention
        shared = {"dtype": compute.parameter_dtype, "rngs": rngs}
        inner = shared | {"std": config.initializer_std, "bias": config.attention_bias}
        stream = {"embed": config.width}
        heads = {"heads": config.heads, "head_dim": config.head_size}
        kv_heads = {"kv_heads": config.key_value_heads, "head_dim": config.head_size}
        self.query = Projection(stream, heads, **inner)
        self.key = Projection(stream, kv_heads, **inner)
        self.value = Projection(stream, kv_heads, **inner)
        self.output = Projection(
            heads, stream, std=config.residual_std, bias=config.attention_output_bias, bias_axes=("residual",), **shared
        )
        if config.attention.query_key_norm != "none":
            one_head = config.attention.query_key_norm == "head"
            self.query_norm = Norm(config, compute, {"head_dim": config.head_size} if one_head else heads)
            self.key_norm = Norm(config, compute, {"head_dim": config.head_size} if one_head else kv_heads)
        self.prefix = nnx.data(None)

    def __call__(
        self,
        hidden: Float[Array, "batch time width"],
        placement: Placement,
        cache: LayerCache | None,
        slot: Int[Array, ""] | None,
    ) -> tuple[Float[Array, "batch time width"], LayerCache | None]:
        """What the block adds to the residual stream.

        Args:
            hidden: normalised residual stream at the new tokens.
            placement: where they and their keys stand.
            cache: this layer's earlier keys and values, to which those of the new tokens are written; None when all are new and
                none will follow. Where the placement's mask has no more keys than there are new tokens, it is written alone.
            slot: where in the cache the new tokens begin.

        Returns:
            The result, and the cache with the new tokens.
        """
        keys, values = self.keys_and_values(hidden, placement)
        sees_new_tokens_alone = placement.mask.shape[-1] == hidden.shape[1]
        if cache is not None:
            cache = cache.write(keys, values, slot)
        if sees_new_tokens_alone:
            keys, values = (constrain(part, ("batch", "kv_heads", "time", None)) for part in (keys, values))
        else:
            keys, values = cache.keys, cache.values
        queries = self.queries(hidden, placement)
        return self.mix(queries, keys, values, placement, in_order=sees_new_tokens_alone), cache

    def queries(
        self, hidden: Float[Array, "batch time width"], placement: Placement
    ) -> Float[Array, "batch time kv_heads group head_dim"]:
        """Queries, rotated to their positions."""
        queries = self.query(hidden, self.dtype)
        if self.config.attention.query_key_norm != "none":
            queries = self.query_norm(queries)
        if placement.rotation is not None:
            queries = rotate(queries, placement.rotation)
        batch, time, _, head_dim = queries.shape
        return queries.reshape(batch, time, self.config.key_value_heads, -1, head_dim)

    def keys_and_values(
        self, hidden: Float[Array, "batch time width"], placement: Placement
    ) -> tuple[Float[Array, "batch kv_heads time head_dim"], Float[Array, "batch kv_heads time head_dim"]]:
        """Keys, rotated to their positions, and values."""
        keys, values = self.key(hidden, self.dtype), self.value(hidden, self.dtype)
        if self.config.attention.query_key_norm != "none":
            keys = self.key_norm(keys)
        if placement.rotation is not None:
            keys = rotate(keys, placement.rotation)
        return keys.swapaxes(1, 2), values.swapaxes(1, 2)

    def mix(
        self,
        queries: Float[Array, "batch time kv_heads group head_dim"],
        keys: Float[Array, "batch kv_heads slots head_dim"],
        values: Float[Array, "batch kv_heads slots head_dim"],
        placement: Placement,
        *,
        in_order: bool,
    ) -> Float[Array, "batch time width"]:
        """Attends, to the prefix too where there is one, and projects back to the residual stream.

        `in_order`: the keys are those of the queries' own tokens, so that no query may look at a later one.
        """
        mask, offsets, segment_ids = placement.mask, placement.offsets, placement.segment_ids
        if self.prefix is not None:
            prefix_keys, prefix_values = self.prefix()
            keys, values = _prepend(prefix_keys, keys), _prepend(prefix_values, values)
            before = ((0, 0), (0, 0), (prefix_keys.shape[1], 0))
            mask = jnp.pad(mask, before, constant_values=True)
            offsets = None if offsets is None else jnp.pad(offsets, before)
            segment_ids = None
        options = {"scale": self.config.attention_scale, "soft_cap": self.config.attention.soft_cap}
        window = self.config.attention.window if self.config.layer_kinds[0].windowed else None
        call = AttentionCall(queries, keys, values, mask, segment_ids, window, **options)
        kernel = choose_kernel(self.implementation if in_order else "plain", call, has_bias=offsets is not None)
        if kernel is None:
            bias = None if offsets is None else self._position_bias(offsets)
            attend_plainly = attend_in_order if in_order and self.prefix is None else attend
            mixed = attend_plainly(queries, keys, values, mask, bias=bias, **options)
        else:
            mixed = attend_by_kernel(kernel, call)
        batch, time, _, _, head_dim = mixed.shape
        return self.output(mixed.reshape(batch, time, self.config.heads, head_dim), self.dtype)

    def _position_bias(self, offsets):
        slopes = alibi_slopes(self.config.heads).reshape(1, self.config.key_value_heads, -1, 1, 1)
        scale = self.config.attention_scale if self.config.attention.scaled_alibi else 1.0
        return scale * slopes * offsets[:, None, None].astype(jnp.float32)


def _prepend(
    prefix: Float[Array, "kv_heads length head_dim"], own: Float[Array, "batch kv_heads slots head_dim"]
) -> Float[Array, "batch kv_heads all head_dim"]:
    repeated = jnp.broadcast_to(prefix.astype(own.dtype), (len(own), *prefix.shape))
    return jnp.concatenate([repeated, own], axis=2)
