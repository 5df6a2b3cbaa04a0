"""The decoder-only Transformer: embedding, a stack of equal blocks, a final norm and an output matrix.

The blocks' parameters are stacked along a leading `layers` axis. Training reads whole rows (`__call__`), generation whole prompts
(`prefill`), and both apply the blocks with `lax.scan`, so that compile time does not grow with depth. Then generation reads a token
at a time through a cache (`decode`), and takes the blocks apart once beforehand, so that no weight is sliced for a token.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int

from rlhf.losses import language_model
from rlhf.losses.chunked_cross_entropy import cross_entropy_of_states
from rlhf.models import parameters
from rlhf.models.block import Block
from rlhf.models.cache import KVCache, LayerCache
from rlhf.models.config import ComputeConfig, ModelConfig
from rlhf.models.norm import Norm
from rlhf.models.placement import LayerPlacements, place
from rlhf.models.positions import positions_from_segments
from rlhf.models.projection import Projection
from rlhf.models.softmax_attention import MIXED
from rlhf.parallel.rules import constrain, parts_of


class Transformer(nnx.Module):
    """A decoder-only language model. Calls return hidden states; `logits` and `token_log_probs` turn those
    into scores and probabilities of tokens.

    Args:
        config: the architecture.
        compute: dtypes and rematerialisation.
        rngs: stream `params` draws the weights.

    Attributes:
        soft_prompt: None, or a module called without arguments that gives embeddings, [length, size], of virtual tokens
            which stand before every sequence and are attended to by all of its tokens.
        adapter_config: what `adapters.insert` has put into the model, or None.
    """

    def __init__(self, config: ModelConfig, *, compute: ComputeConfig = ComputeConfig(), rngs: nnx.Rngs):
        self.config = config
        self.compute = compute
        self.soft_prompt = nnx.data(None)
        self.adapter_config = None
        dtype, std = compute.parameter_dtype, config.initializer_std
        size, width = config.embedding_size, config.width
        self.embedding = parameters.normal(
            rngs, (config.vocab_size, size), std=std, dtype=dtype, axes=("vocab", "embed")
        )
        if config.position == "learned":
            rows = config.context + config.position_offset
            self.position_embedding = parameters.normal(rngs, (rows, width), std=std, dtype=dtype, axes=(None, "embed"))
        if config.embedding_width is not None:
            shared = {"std": std, "bias": False, "dtype": dtype, "rngs": rngs}
            self.embedding_in = Projection({None: size}, {"embed": width}, **shared)
            self.embedding_out = Projection({"embed": width}, {None: size}, **shared)
        if config.embedding_norm:
            self.embedding_norm = Norm(config, compute)
        self.blocks = parameters.stack(lambda rngs: Block(config, compute, rngs), config.layers, rngs)
        if config.final_norm:
            self.final_norm = Norm(config, compute)
        if not config.tied_embeddings:
            self.head_kernel = parameters.normal(
                rngs, (size, config.vocab_size), std=std, dtype=dtype, axes=("embed", "vocab")
            )

    def __call__(
        self,
        tokens: Int[Array, "batch time"],
        segment_ids: Int[Array, "batch time"],
        positions: Int[Array, "batch time"] | None = None,
        branch_ids: Int[Array, "batch time"] | None = None,
    ) -> Float[Array, "batch time size"]:
        """Hidden states of whole rows.

        A token attends to the tokens of its own segment up to itself, so the sequences of a packed row do not see each other.
        Answers to one prompt may share it: a segment's trunk, computed once, and branches that see the trunk and themselves.

        Args:
            tokens: token ids; any valid id at padding.
            segment_ids: 1, 2, … for the sequences of a row, 0 for padding on either side.
            positions: place of each token in its sequence; None for `positions_from_segments`, which knows no branches.
            branch_ids: 0 for a segment's trunk, 1, 2, … for its branches after it; None where there are none.

        Returns:
            Hidden states after the final norm; at padding they are finite and meaningless.
        """
        plain = positions is None and branch_ids is None and self.soft_prompt is None
        positions = positions_from_segments(segment_ids) if positions is None else positions
        positions = constrain(positions + self.virtual_tokens, ("batch", "time"))
        mask = _causal_mask(segment_ids)
        if branch_ids is not None:
            mask &= (branch_ids[:, None, :] == 0) | (branch_ids[:, None, :] == branch_ids[:, :, None])
        hidden = self._embed(tokens, positions)
        if self.soft_prompt is not None:
            hidden, positions, mask = self._prepend_soft_prompt(hidden, positions, mask)
        placements = place(self.config, positions, positions, mask, segment_ids if plain else None)
        hidden, _ = self._apply_blocks(hidden, placements)
        return self._finish(hidden[:, self.virtual_tokens :])

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
        return self._decode(virtual, positions, jnp.ones((batch, length), bool), cache, self.layers())[1]

    def prefill(
        self,
        tokens: Int[Array, "batch time"],
        positions: Int[Array, "batch time"],
        valid: Bool[Array, "batch time"],
        slots: int,
        layers: Sequence[Block] | None = None,
    ) -> tuple[Float[Array, "batch time size"], KVCache]:
        """`decode` from an empty cache: prompts see nothing but themselves, so attention reads no cache and can be a kernel.

        Args:
            tokens: prompts, left-padded.
            positions: their places in their sequences.
            valid: True on real tokens.
            slots: as for `new_cache`, of which the prompts take the first.
            layers: as for `decode`, which reads the prompts where there are virtual tokens; elsewhere not used.
        """
        cache = self.new_cache(len(tokens), slots)
        if self.virtual_tokens:
            return self.decode(tokens, positions, valid, cache, layers)
        segment_ids = valid.astype(jnp.int32)
        placements = place(self.config, positions, positions, _causal_mask(segment_ids), segment_ids)
        room = LayerCache.create(self.config, self.compute, *tokens.shape)
        hidden, prompts = self._apply_blocks(self._embed(tokens, positions), placements, room)
        of_layers = [
            layer.write(*parts, 0) for layer, *parts in zip(cache.layers, prompts.keys, prompts.values, strict=True)
        ]
        return self._finish(hidden), cache.extended(of_layers, positions, valid)

    def decode(
        self,
        tokens: Int[Array, "batch time"],
        positions: Int[Array, "batch time"],
        valid: Bool[Array, "batch time"],
        cache: KVCache,
        layers: Sequence[Block] | None = None,
    ) -> tuple[Float[Array, "batch time size"], KVCache]:
        """Hidden states of new tokens that follow those in the cache: a left-padded prompt, or one token a row.

        Args:
            tokens: new tokens; they go to the slots from `cache.length` on, for which there must be room.
            positions: their places in their sequences, virtual tokens not counted.
            valid: True on real tokens, False on padding, which is never attended to.
            cache: what came before; at first, `new_cache`.
            layers: `self.layers()`, to be called once before a loop over tokens; None calls it here.

        Returns:
            Hidden states after the final norm, and the cache with the new tokens in it.
        """
        positions = positions + self.virtual_tokens
        return self._decode(self._embed(tokens, positions), positions, valid, cache, layers or self.layers())

    def layers(self) -> list[Block]:
        """The blocks one by one, each with its part of the stacked parameters."""
        graphdef, stacked = nnx.split(self.blocks)

        def of_layer(layer: int) -> Block:
            return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[layer], stacked))

        return [of_layer(layer) for layer in range(self.config.layers)]

    def _decode(self, hidden, positions, valid, cache: KVCache, layers: Sequence[Block]):
        time, write = hidden.shape[1], (0, cache.length)
        key_positions = lax.dynamic_update_slice(cache.positions, positions.astype(jnp.int32), write)
        key_valid = lax.dynamic_update_slice(cache.valid, valid, write)
        # Of the new tokens, those after itself are hidden from a token; all others in the cache came before.
        number = jnp.arange(cache.slots) - cache.length
        comes_later = (number > jnp.arange(time)[:, None]) & (number < time)
        mask = key_valid[:, None, :] & ~comes_later
        placements = place(self.config, positions, key_positions, mask)
        written = []
        for number, (block, earlier) in enumerate(zip(layers, cache.layers, strict=True)):
            hidden, layer_cache = block(hidden, placements.of_layer(number), earlier, cache.length)
            written.append(layer_cache)
        return self._finish(hidden), cache.extended(written, positions, valid)

    def _apply_blocks(self, hidden, placements: LayerPlacements, room: LayerCache | None = None):
        """The residual stream after all blocks, and where a layer has room for them the keys and values of all, stacked."""
        graphdef, stacked = nnx.split(self.blocks)

        def apply_block(hidden, inputs):
            layer, state = inputs
            return nnx.merge(graphdef, state)(hidden, placements.of_layer(layer), room, 0)

        body = _rematerialised(apply_block, self.compute.remat)
        return lax.scan(body, hidden, (jnp.arange(self.config.layers), stacked))

    def logits(self, hidden: Float[Array, "*rows size"]) -> Float32[Array, "*rows vocab"]:
        """Scores over the vocabulary, accumulated in float32; rows that stand for no token are never the likeliest."""
        if self.config.tied_embeddings:
            embedding = self.embedding.astype(self.compute.dtype)
            logits = lax.platform_dependent(hidden, embedding, cpu=_similarities_turned, default=_similarities)
        else:
            logits = jnp.matmul(hidden, self.output_kernel(), preferred_element_type=jnp.float32)
        return language_model.finish_logits(logits, **self._logit_rules)

    def token_log_probs(
        self,
        hidden: Float[Array, "batch time size"],
        targets: Int[Array, "batch time"],
        *,
        temperature: float = 1.0,
        chunk_size: int | None = None,
    ) -> Float32[Array, "batch time"]:
        """Log-probability of given tokens; see `rlhf.losses.token_log_probs`.

        Args:
            hidden: hidden states, each at the token before the target.
            targets: token ids.
            temperature: what the logits are divided by.
            chunk_size: positions whose logits exist at a time; None for all.
        """
        return language_model.token_log_probs(
            hidden,
            self.output_kernel(),
            targets,
            temperature=temperature,
            chunk_size=chunk_size,
            **self._log_prob_rules,
        )

    def cross_entropy(
        self,
        hidden: Float[Array, "batch time size"],
        targets: Int[Array, "batch time"],
        mask: Bool[Array, "batch time"],
        *,
        chunk_size: int | None = None,
    ) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
        """Negative log-likelihood of the targets that count, and their number; see `rlhf.losses.cross_entropy_of_states`."""
        rules = self._log_prob_rules
        return cross_entropy_of_states(hidden, self.output_kernel(), targets, mask, chunk_size=chunk_size, **rules)

    def token_log_probs_and_entropy(
        self,
        hidden: Float[Array, "batch time size"],
        targets: Int[Array, "batch time"],
        *,
        temperature: float = 1.0,
        chunk_size: int | None = None,
        support: Int[Array, "batch time kept"] | None = None,
    ) -> tuple[Float32[Array, "batch time"], Float32[Array, "batch time"]]:
        """As `token_log_probs`, with the entropy of the distribution that each token was drawn from: all tokens, or `support`."""
        return language_model.token_log_probs_and_entropy(
            hidden,
            self.output_kernel(),
            targets,
            temperature=temperature,
            chunk_size=chunk_size,
            support=support,
            **self._log_prob_rules,
        )

    @property
    def _logit_rules(self) -> dict:
        return {"soft_cap": self.config.logit_soft_cap, "token_count": self.config.token_count}

    @property
    def _log_prob_rules(self) -> dict:
        return {"flatten": parts_of("time") == 1, **self._logit_rules}

    def output_kernel(self) -> Float[Array, "size vocab"]:
        """The output matrix in the compute dtype: its own, or the embedding transposed."""
        kernel = self.embedding.T if self.config.tied_embeddings else self.head_kernel[...]
        return kernel.astype(self.compute.dtype)

    def _embed(self, tokens, positions):
        return self._place(constrain(self.embedding[...], ("vocab", None))[tokens], positions)

    def _virtual_hidden(self):
        return self._place(self.soft_prompt()[None], jnp.arange(self.virtual_tokens, dtype=jnp.int32)[None])

    def _place(self, embeddings, positions):
        """From embeddings to the residual stream before the first block."""
        dtype = self.compute.dtype
        hidden = embeddings
        if self.config.embedding_scale != 1:
            hidden = hidden.astype(dtype) * jnp.asarray(self.config.embedding_scale, dtype)
        if self.config.embedding_width is not None:
            hidden = self.embedding_in(hidden.astype(dtype), dtype)
        if self.config.position == "learned":
            rows = positions + self.config.position_offset
            # A position beyond the context is NaN, which is noticed, rather than the last one, which is not.
            hidden = hidden + jnp.take(self.position_embedding[...], rows, axis=0, mode="fill")
        hidden = hidden.astype(dtype)
        if self.config.embedding_norm:
            hidden = self.embedding_norm(hidden)
        return constrain(hidden, ("batch", "time", None))

    def _finish(self, hidden):
        """From the residual stream after the last block to the states that the output matrix reads."""
        if self.config.final_norm:
            hidden = self.final_norm(hidden)
        return hidden if self.config.embedding_width is None else self.embedding_out(hidden, self.compute.dtype)

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


def _causal_mask(segment_ids):
    """True where a token of a row may look: the same segment, not later, no padding."""
    same_segment = segment_ids[:, :, None] == segment_ids[:, None, :]
    return same_segment & jnp.tri(segment_ids.shape[1], dtype=bool) & (segment_ids > 0)[:, None, :]


def _similarities(hidden, embedding):
    """Products of each hidden state with each row of the embedding: [*rows, size], [vocab, size] → [*rows, vocab]."""
    return jnp.matmul(hidden, embedding.T, preferred_element_type=jnp.float32)


def _similarities_turned(hidden, embedding):
    """The same, tokens first and turned afterwards, which takes a CPU a fifth to a third less for the few rows of decoding."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    products = jnp.matmul(embedding, rows.T, preferred_element_type=jnp.float32)
    products = lax.optimization_barrier(products)  # without it XLA turns the product round again
    return products.T.reshape(*hidden.shape[:-1], -1)


def _rematerialised(function, policy: str):
    """Wraps a scan body so that the backward pass recomputes what the policy does not keep."""
    if policy == "none":
        return function
    policies = jax.checkpoint_policies
    products = policies.dots_with_no_batch_dims_saveable  # those with parameters, and not attention's scores
    kept = (
        policies.save_from_both_policies(products, policies.save_only_these_names(MIXED)) if policy == "dots" else None
    )
    return jax.checkpoint(function, policy=kept, prevent_cse=False)
