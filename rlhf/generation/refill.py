"""Sampling many responses on few rows: where a response has ended, the next prompt enters, so that no row waits for the longest.

All rows of the cache write the same slot at a time, as in `rlhf.generation.generator`, and the slots are a ring: a prompt that
enters is laid right before the current slot, over what the row held, and its response goes on from there. As a sequence is never
longer than the ring, it never overwrites itself; where its tokens stand is told by their positions, not by their slots.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import register_dataclass
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from rlhf.generation.generator import Responses, empty_responses
from rlhf.generation.sampling import SamplingConfig, choose_tokens, without_early_end
from rlhf.models.cache import KVCache, LayerCache
from rlhf.models.transformer import Transformer, positions_from_segments


@register_dataclass
@dataclass(frozen=True)
class _State:
    """Between two tokens.

    Attributes:
        cache: keys and values; its length counts all steps so far.
        prompt: which prompt each row answers; the number of prompts where a row is idle.
        length: tokens of each row's response so far.
        position: place of each row's last token in its sequence.
        last: each row's last token.
        waiting: the first prompt that no row has answered yet.
        responses: one row a prompt, and one more that idle rows write to.
    """

    cache: KVCache
    prompt: Int[Array, " rows"]
    length: Int[Array, " rows"]
    position: Int[Array, " rows"]
    last: Int[Array, " rows"]
    waiting: Int[Array, ""]
    responses: Responses


def generate_refilled(
    model: Transformer,
    prompt_tokens: Int[Array, "prompts prompt_time"],
    prompt_mask: Bool[Array, "prompts prompt_time"],
    key: PRNGKeyArray,
    *,
    rows: int,
    sampling: SamplingConfig,
    max_new_tokens: int,
    end_token: int,
    pad_token: int,
    minimum_new_tokens: int = 0,
) -> Responses:
    """Samples one response a prompt, `rows` of them at a time. Pure; call it under `jax.jit`.

    New prompts enter when a quarter of the rows is idle: a prompt is read at the cost of many tokens, and reading a few together
    costs little more than reading one.

    Args:
        model: the policy.
        prompt_tokens: prompts, left-padded.
        prompt_mask: True on real prompt tokens.
        key: randomness; token t of prompt i depends on the key, i and t alone, not on the row or its neighbours.
        rows: responses in the making at a time.
        sampling: temperature and truncation of the distribution.
        max_new_tokens: longest response (columns of the result).
        end_token: the response ends with this token, which belongs to it.
        pad_token: fills the columns after the end.
        minimum_new_tokens: before so many tokens the end token has probability 0.

    Returns:
        Responses of shape [prompts, max_new_tokens].
    """
    count, prompt_time = prompt_tokens.shape
    rows = min(rows, count)
    entering = max(1, rows // 4)
    ring, virtual, layers = prompt_time + max_new_tokens, model.virtual_tokens, model.layers()
    prompt_positions = positions_from_segments(prompt_mask.astype(jnp.int32))
    prompt_keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(count + 1))

    def record(state: _State, hidden, row_prompts, lengths):
        """Samples a token for each given prompt and writes it down; the idle ones' go to the row that nobody reads."""
        keys = jax.vmap(jax.random.fold_in)(prompt_keys[row_prompts], lengths)
        uniforms = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
        logits = without_early_end(model.logits(hidden), lengths, end_token, minimum_new_tokens)
        tokens, log_probs, support = choose_tokens(uniforms, logits, sampling)
        column, at = Responses(tokens, jnp.ones(tokens.shape, bool), log_probs, support), (row_prompts, lengths)
        responses = jax.tree.map(lambda whole, part: whole.at[at].set(part), state.responses, column)
        ended = (tokens == end_token) | (lengths + 1 == max_new_tokens)
        return responses, tokens, jnp.where(ended, count, row_prompts)

    def enter(state: _State) -> _State:
        """Puts waiting prompts into idle rows and samples their first tokens."""
        idle = jnp.argsort(state.prompt < count, stable=True)[:entering]
        candidates = state.waiting + jnp.arange(entering)
        row_prompts = jnp.minimum(candidates, count)
        read = jnp.minimum(candidates, count - 1)
        mask = prompt_mask[read] & (candidates < count)[:, None]
        hidden, prefilled = model.prefill(prompt_tokens[read], prompt_positions[read], mask, prompt_time, layers)
        slots = virtual + (state.cache.length - prompt_time + jnp.arange(prompt_time)) % ring
        cache = _lay(state.cache, prefilled, idle, slots, virtual)
        responses, tokens, answering = record(state, hidden[:, -1], row_prompts, jnp.zeros(entering, jnp.int32))
        return replace(
            state,
            cache=cache,
            prompt=state.prompt.at[idle].set(answering),
            length=state.length.at[idle].set(1),
            position=state.position.at[idle].set(mask.sum(axis=1, dtype=jnp.int32)),
            last=state.last.at[idle].set(tokens),
            waiting=jnp.minimum(state.waiting + entering, count),
            responses=responses,
        )

    def decode_one(state: _State) -> _State:
        active, steps = state.prompt < count, state.cache.length
        hidden, cache = model.decode(
            state.last[:, None],
            state.position[:, None],
            active[:, None],
            replace(state.cache, length=virtual + steps % ring),
            layers,
        )
        # A response that has just ended has no column left where its row's next token would go.
        column = jnp.minimum(state.length, max_new_tokens - 1)
        responses, tokens, answering = record(state, hidden[:, -1], state.prompt, column)
        return replace(
            state,
            cache=replace(cache, length=steps + 1),
            prompt=answering,
            length=state.length + 1,
            position=state.position + 1,
            last=tokens,
            responses=responses,
        )

    def full_enough(state: _State):
        active = jnp.sum(state.prompt < count)
        nobody_enters = (state.waiting == count) | (rows - active < entering)
        return (active > 0) & nobody_enters

    def unfinished(state: _State):
        return (state.waiting < count) | jnp.any(state.prompt < count)

    start = _State(
        cache=replace(model.new_cache(rows, ring), length=jnp.int32(0)),
        prompt=jnp.full(rows, count, jnp.int32),
        length=jnp.zeros(rows, jnp.int32),
        position=jnp.zeros(rows, jnp.int32),
        last=jnp.full(rows, pad_token, prompt_tokens.dtype),
        waiting=jnp.int32(0),
        responses=empty_responses(count + 1, max_new_tokens, pad_token, sampling, model.config.vocab_size),
    )
    end = lax.while_loop(unfinished, lambda state: lax.while_loop(full_enough, decode_one, enter(state)), start)
    return jax.tree.map(lambda leaf: leaf[:count], end.responses)


def _lay(cache: KVCache, prefilled: KVCache, rows: Array, slots: Array, virtual: int) -> KVCache:
    """Puts prompts that were read by themselves into rows of the cache, in the place of all but the virtual tokens."""

    def put(all_rows, new):  # [rows, kv_heads, slots, head_dim]
        return all_rows.at[rows[:, None], :, slots[None, :]].set(new[:, :, virtual:].swapaxes(1, 2))

    layers = tuple(
        LayerCache(put(layer.keys, new.keys), put(layer.values, new.values))
        for layer, new in zip(cache.layers, prefilled.layers, strict=True)
    )
    here = (rows[:, None], slots[None, :])
    only_virtual = jnp.broadcast_to(jnp.arange(cache.slots) < virtual, (len(rows), cache.slots))
    return replace(
        cache,
        layers=layers,
        positions=cache.positions.at[here].set(prefilled.positions[:, virtual:]),
        valid=cache.valid.at[rows].set(only_virtual).at[here].set(prefilled.valid[:, virtual:]),
    )
