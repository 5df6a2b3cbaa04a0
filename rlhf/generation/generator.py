"""Sampling responses: one compiled program of prefill and decode.

The prompts are left-padded, so every response starts in the same column and the key/value cache is written at one slot a step for
the whole batch. The loop stops as soon as every response has ended. Long responses of shallow models are sampled in several loops,
between which the cache grows.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from rlhf.generation.sampling import SamplingConfig, choose_tokens, without_early_end
from rlhf.models.transformer import Transformer, positions_from_segments

LEAST_STEPS = 64
MOST_LAYERS = 24
"""Of the loops over tokens: each is compiled by itself, layer by layer, and all but the first begin with a copy of the cache."""


@register_dataclass
@dataclass(frozen=True)
class Responses:
    """Sampled responses, right-padded.

    Attributes:
        tokens: response tokens; the padding token after the end.
        mask: True on response tokens, the end token included.
        log_probs: log-probability of each token under the distribution it was drawn from; 0 on padding.
        support: with top-k, the tokens that each was drawn from, −1 where there are fewer; meaningless on padding. Else None.
    """

    tokens: Int[Array, "batch time"]
    mask: Bool[Array, "batch time"]
    log_probs: Float[Array, "batch time"]
    support: Int[Array, "batch time kept"] | None = None


def empty_responses(count: int, time: int, pad_token: int, sampling: SamplingConfig, vocabulary: int) -> Responses:
    """Responses without a token, to be written into."""
    kept = sampling.support_size(vocabulary)
    return Responses(
        tokens=jnp.full((count, time), pad_token, jnp.int32),
        mask=jnp.zeros((count, time), bool),
        log_probs=jnp.zeros((count, time), jnp.float32),
        support=None if kept is None else jnp.zeros((count, time, kept), jnp.int32),
    )


def generate(
    model: Transformer,
    prompt_tokens: Int[Array, "batch prompt_time"],
    prompt_mask: Bool[Array, "batch prompt_time"],
    key: PRNGKeyArray,
    *,
    sampling: SamplingConfig,
    max_new_tokens: int,
    end_token: int,
    pad_token: int,
    minimum_new_tokens: int = 0,
) -> Responses:
    """Samples one response a prompt. Pure; call it under `jax.jit`.

    Args:
        model: the policy.
        prompt_tokens: prompts, left-padded.
        prompt_mask: True on real prompt tokens.
        key: randomness; step t uses `fold_in(key, t)`, so equal keys give equal responses.
        sampling: temperature and truncation of the distribution.
        max_new_tokens: longest response (columns of the result).
        end_token: the response ends with this token, which belongs to it.
        pad_token: fills the columns after the end.
        minimum_new_tokens: before so many tokens the end token has probability 0.

    Returns:
        Responses of shape [batch, max_new_tokens].
    """
    batch, prompt_time = prompt_tokens.shape
    lengths = _loop_lengths(max_new_tokens, model.config.layers)
    layers, positions = model.layers(), positions_from_segments(prompt_mask.astype(jnp.int32))
    hidden, cache = model.prefill(prompt_tokens, positions, prompt_mask, prompt_time + lengths[0], layers)
    next_position = prompt_mask.sum(axis=1, dtype=jnp.int32)

    def sample(step, hidden, ended) -> Responses:
        """One column of the responses."""
        logits = without_early_end(model.logits(hidden), step, end_token, minimum_new_tokens)
        uniforms = jax.random.uniform(jax.random.fold_in(key, step), (batch, 2))
        tokens, log_probs, support = choose_tokens(uniforms, logits, sampling)
        tokens = jnp.where(ended, pad_token, tokens).astype(jnp.int32)
        return Responses(tokens, ~ended, jnp.where(ended, 0.0, log_probs), support)

    def write(responses: Responses, step, column: Responses) -> Responses:
        put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=step, axis=1)
        return jax.tree.map(lambda whole, part: put(whole, part[:, None]), responses, column)

    def keep_going(carry, end):
        step, _, _, ended, _ = carry
        return (step < end) & ~jnp.all(ended)

    def decode_one(carry):
        step, cache, last_tokens, ended, responses = carry
        hidden, cache = model.decode(
            last_tokens[:, None], (next_position + step - 1)[:, None], jnp.ones((batch, 1), bool), cache, layers
        )
        column = sample(step, hidden[:, -1], ended)
        responses = write(responses, step, column)
        return step + 1, cache, column.tokens, ended | (column.tokens == end_token), responses

    column = sample(0, hidden[:, -1], jnp.zeros(batch, bool))
    responses = empty_responses(batch, max_new_tokens, pad_token, sampling, model.config.vocab_size)
    responses = write(responses, 0, column)
    carry = (jnp.int32(1), cache, column.tokens, column.tokens == end_token, responses)
    end = 0
    for length in lengths:
        step, cache, *others = carry
        carry = (step, cache if end == 0 else cache.grown(length), *others)
        end += length
        carry = jax.lax.while_loop(partial(keep_going, end=end), decode_one, carry)
    return carry[-1]


def _loop_lengths(max_new_tokens: int, layers: int) -> list[int]:
    """Divides the tokens among loops: every token reads the whole cache, so the earlier ones have a shorter one.

    For a deep model one loop takes long enough to compile, and its weights are most of what it reads.
    """
    loops = max(1, min(max_new_tokens // LEAST_STEPS, MOST_LAYERS // layers))
    return [max_new_tokens // loops + (number < max_new_tokens % loops) for number in range(loops)]
