"""The decoder-only Transformer: embedding, a stack of equal blocks, a final norm and an output matrix.

The blocks' parameters are stacked along a leading `layers` axis and applied with `lax.scan`, so that compile time does not
grow with depth. Training reads whole rows (`__call__`); generation reads the prompt and then a token at a time through a
cache (`decode`).
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int

from rlhf.models import parameters
from rlhf.models.attention import Attention, Rotation, rotation
from rlhf.models.cache import KVCache, read_layer, write_layer
from rlhf.models.config import ComputeConfig, ModelConfig
from rlhf.models.projection import Projection
from rlhf.parallel.rules import constrain

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


def positions_from_segments(segment_ids: Int[Array, "batch time"]) -> Int[Array, "batch time"]:
    """Position of each token in its segment.

    Args:
        segment_ids: 1, 2, … for the sequences of a row, each in one run; 0 for padding on either side.

    Returns:
        0, 1, 2 … within each segment, 0 at padding.
    """
    columns = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)
    starts = segment_ids != jnp.pad(segment_ids, ((0, 0), (1, 0)))[:, :-1]
    start_columns = lax.cummax(jnp.where(starts, columns, 0), axis=1)
    return jnp.where(segment_ids > 0, columns - start_columns, 0)


class Norm(nnx.Module):
    """Root-mean-square (1910.07467) or layer normalisation, with float32 statistics."""

    def __init__(self, config: ModelConfig, compute: ComputeConfig):
        self.config = config
        self.scale = parameters.ones((config.width,), dtype=compute.parameter_dtype, axes=("residual",))
        if config.norm == "layer":
            self.bias = parameters.zeros((config.width,), dtype=compute.parameter_dtype, axes=("residual",))

    def __call__(self, hidden: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
        """Normalises the last axis."""
        wide = hidden.astype(jnp.float32)
        if self.config.norm == "layer":
            wide = wide - wide.mean(axis=-1, keepdims=True)
        variance = jnp.square(wide).mean(axis=-1, keepdims=True)
        normalised = wide * lax.rsqrt(variance + self.config.norm_epsilon) * self.scale.astype(jnp.float32)
        if self.config.norm == "layer":
            normalised = normalised + self.bias.astype(jnp.float32)
        return normalised.astype(hidden.dtype)


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


class Block(nnx.Module):
    """Attention and feed-forward part, each on the normalised residual stream and added to it.

    Attributes:
        attention_adapter: None, or a module called on what attention is about to add to the residual stream, whose result
            is added instead.
        mlp_adapter: the same for the feed-forward part.
    """

    def __init__(self, config: ModelConfig, compute: ComputeConfig, rngs: nnx.Rngs):
        self.attention_norm = Norm(config, compute)
        self.attention = Attention(config, compute, rngs)
        self.mlp_norm = Norm(config, compute)
        self.mlp = Mlp(config, compute, rngs)
        self.attention_adapter = nnx.data(None)
        self.mlp_adapter = nnx.data(None)

    def __call__(
        self, hidden: Float[Array, "batch time width"], rotation: Rotation | None, mask: Bool[Array, "batch time time"]
    ) -> Float[Array, "batch time width"]:
        """Reads whole rows: every token's keys are among the inputs."""
        normalised = self.attention_norm(hidden)
        keys, values = self.attention.keys_and_values(normalised, rotation)
        return self._add(hidden, self.attention.mix(self.attention.queries(normalised, rotation), keys, values, mask))

    def decode(
        self,
        hidden: Float[Array, "batch time width"],
        rotation: Rotation | None,
        mask: Bool[Array, "batch time slots"],
        cache: KVCache,
        layer: Int[Array, ""],
    ) -> tuple[Float[Array, "batch time width"], KVCache]:
        """Reads new tokens; earlier keys come from layer `layer` of the cache, to which the new ones are written."""
        normalised = self.attention_norm(hidden)
        keys, values = self.attention.keys_and_values(normalised, rotation)
        cache = KVCache(
            keys=write_layer(cache.keys, keys, layer, cache.length),
            values=write_layer(cache.values, values, layer, cache.length),
            valid=cache.valid,
            length=cache.length,
        )
        queries = self.attention.queries(normalised, rotation)
        mixed = self.attention.mix(queries, read_layer(cache.keys, layer), read_layer(cache.values, layer), mask)
        return self._add(hidden, mixed), cache

    def _add(self, hidden, mixed):
        if self.attention_adapter is not None:
            mixed = self.attention_adapter(mixed)
        hidden = constrain(hidden + mixed, ("batch", "time", None))
        transformed = self.mlp(self.mlp_norm(hidden))
        if self.mlp_adapter is not None:
            transformed = self.mlp_adapter(transformed)
        return constrain(hidden + transformed, ("batch", "time", None))


class Transformer(nnx.Module):
    """A decoder-only language model. Calls return hidden states; `logits` turns those into scores over the vocabulary.

    Args:
        config: the architecture.
        compute: dtypes and rematerialisation.
        rngs: stream `params` draws the weights.

    Attributes:
        soft_prompt: None, or a module called without arguments that gives embeddings, [length, width], of virtual tokens
            which stand before every sequence and are attended to by all of its tokens.
        adapter_config: what `adapters.insert` has put into the model, or None.
    """

    def __init__(self, config: ModelConfig, *, compute: ComputeConfig = ComputeConfig(), rngs: nnx.Rngs):
        self.config = config
        self.compute = compute
        self.soft_prompt = nnx.data(None)
        self.adapter_config = None
        dtype, std = compute.parameter_dtype, config.initializer_std
        self.embedding = parameters.normal(
            rngs, (config.vocab_size, config.width), std=std, dtype=dtype, axes=("vocab", "embed")
        )
        if config.position == "learned":
            self.position_embedding = parameters.normal(
                rngs, (config.context, config.width), std=std, dtype=dtype, axes=(None, "embed")
            )
        self.blocks = parameters.stack(lambda rngs: Block(config, compute, rngs), config.layers, rngs)
        self.final_norm = Norm(config, compute)
        if not config.tied_embeddings:
            self.head_kernel = parameters.normal(
                rngs, (config.width, config.vocab_size), std=std, dtype=dtype, axes=("embed", "vocab")
            )

    def __call__(
        self,
        tokens: Int[Array, "batch time"],
        segment_ids: Int[Array, "batch time"],
        positions: Int[Array, "batch time"] | None = None,
    ) -> Float[Array, "batch time width"]:
        """Hidden states of whole rows.

        A token attends to the tokens of its own segment up to itself, so the sequences of a packed row do not see each other.

        Args:
            tokens: token ids; any valid id at padding.
            segment_ids: 1, 2, … for the sequences of a row, 0 for padding on either side.
            positions: place of each token in its sequence; None for `positions_from_segments`.

        Returns:
            Hidden states after the final norm; at padding they are finite and meaningless.
        """
        positions = positions_from_segments(segment_ids) if positions is None else positions
        positions = positions + self.virtual_tokens
        same_segment = segment_ids[:, :, None] == segment_ids[:, None, :]
        causal = jnp.tri(tokens.shape[1], dtype=bool)
        mask = same_segment & causal & (segment_ids > 0)[:, None, :]
        hidden = self._embed(tokens, positions)
        if self.soft_prompt is not None:
            hidden, positions, mask = self._prepend_soft_prompt(hidden, positions, mask)
        angles = self._rotation(positions)
        graphdef, layers = nnx.split(self.blocks)

        def apply_block(hidden, layer_state):
            return nnx.merge(graphdef, layer_state)(hidden, angles, mask), None

        hidden, _ = lax.scan(_rematerialised(apply_block, self.compute.remat), hidden, layers)
        return self.final_norm(hidden[:, self.virtual_tokens :])

    @property
    def virtual_tokens(self) -> int:
        """Number of virtual tokens that stand before every sequence."""
        return 0 if self.soft_prompt is None else self.soft_prompt.length

    def new_cache(self, batch: int, slots: int) -> KVCache:
        """A cache for `decode`, with nothing in it but the virtual tokens, if there are any.

        Args:
            batch: number of rows.
            slots: room for prompt and response together, in tokens; virtual tokens have theirs besides.
        """
        length = self.virtual_tokens
        cache = KVCache.create(self.config, self.compute, batch, length + slots)
        if length == 0:
            return cache
        positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
        virtual = jnp.broadcast_to(self._virtual_hidden(), (batch, length, self.config.width))
        return self._decode(virtual, positions, jnp.ones((batch, length), bool), cache)[1]

    def decode(
        self,
        tokens: Int[Array, "batch time"],
        positions: Int[Array, "batch time"],
        valid: Bool[Array, "batch time"],
        cache: KVCache,
    ) -> tuple[Float[Array, "batch time width"], KVCache]:
        """Hidden states of new tokens that follow those in the cache: a left-padded prompt, or one token a row.

        Args:
            tokens: new tokens; they go to the slots from `cache.length` on, for which there must be room.
            positions: their places in their sequences, virtual tokens not counted.
            valid: True on real tokens, False on padding, which is never attended to.
            cache: what came before; at first, `new_cache`.

        Returns:
            Hidden states after the final norm, and the cache with the new tokens in it.
        """
        positions = positions + self.virtual_tokens
        return self._decode(self._embed(tokens, positions), positions, valid, cache)

    def _decode(self, hidden, positions, valid, cache: KVCache):
        time = hidden.shape[1]
        slot_valid = lax.dynamic_update_slice(cache.valid, valid, (0, cache.length))
        up_to_itself = jnp.arange(cache.slots) <= cache.length + jnp.arange(time)[:, None]
        mask = slot_valid[:, None, :] & up_to_itself
        angles = self._rotation(positions)
        graphdef, layers = nnx.split(self.blocks)

        # The cache is carried, not scanned over: as input and output of the scan all of it would be copied for every token.
        def apply_block(carry, inputs):
            hidden, cache = carry
            layer, layer_state = inputs
            return nnx.merge(graphdef, layer_state).decode(hidden, angles, mask, cache, layer), None

        (hidden, cache), _ = lax.scan(apply_block, (hidden, cache), (jnp.arange(self.config.layers), layers))
        return self.final_norm(hidden), KVCache(cache.keys, cache.values, slot_valid, cache.length + time)

    def logits(self, hidden: Float[Array, "*rows width"]) -> Float32[Array, "*rows vocab"]:
        """Scores over the vocabulary, accumulated in float32."""
        return jnp.matmul(hidden, self.output_kernel(), preferred_element_type=jnp.float32)

    def output_kernel(self) -> Float[Array, "width vocab"]:
        """The output matrix in the compute dtype: its own, or the embedding transposed."""
        kernel = self.embedding.T if self.config.tied_embeddings else self.head_kernel[...]
        return kernel.astype(self.compute.dtype)

    def _embed(self, tokens, positions):
        return self._place(constrain(self.embedding[...], ("vocab", None))[tokens], positions)

    def _virtual_hidden(self):
        return self._place(self.soft_prompt()[None], jnp.arange(self.virtual_tokens, dtype=jnp.int32)[None])

    def _place(self, hidden, positions):
        if self.config.position == "learned":
            # A position beyond the context is NaN, which is noticed, rather than the last one, which is not.
            hidden = hidden + jnp.take(self.position_embedding[...], positions, axis=0, mode="fill")
        return constrain(hidden.astype(self.compute.dtype), ("batch", "time", None))

    def _prepend_soft_prompt(self, hidden, positions, mask):
        """Puts the virtual tokens before each row; all of its tokens see them, they see those of themselves that come before."""
        (batch, time, width), length = hidden.shape, self.virtual_tokens
        virtual = jnp.broadcast_to(self._virtual_hidden(), (batch, length, width))
        virtual_positions = jnp.broadcast_to(jnp.arange(length, dtype=positions.dtype), (batch, length))
        virtual_mask = jnp.broadcast_to(jnp.tri(length, length + time, dtype=bool), (batch, length, length + time))
        own_mask = jnp.pad(mask, ((0, 0), (0, 0), (length, 0)), constant_values=True)
        return (
            jnp.concatenate([virtual, hidden], axis=1),
            jnp.concatenate([virtual_positions, positions], axis=1),
            jnp.concatenate([virtual_mask, own_mask], axis=1),
        )

    def _rotation(self, positions) -> Rotation | None:
        if self.config.position != "rope":
            return None
        return rotation(positions, self.config.head_size, self.config.rope_theta)


def _rematerialised(function, policy: str):
    """Wraps a scan body so that the backward pass recomputes what the policy does not keep."""
    if policy == "none":
        return function
    saved = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if policy == "dots" else None
    return jax.checkpoint(function, policy=saved, prevent_cse=False)
