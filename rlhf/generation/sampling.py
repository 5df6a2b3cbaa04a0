"""Drawing one token a row from logits, with the log-probability it was drawn at."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, PRNGKeyArray

from rlhf.errors import UserError


@dataclass(frozen=True)
class SamplingConfig:
    """How tokens are drawn. Filters apply in the order temperature, top-k, top-p.

    Training with a KL penalty wants temperature alone: a filter removes tokens that the policy and the reference would still give
    probability to, and no estimate from the tokens that are left can tell of them. With top-k the tokens that were left are kept
    beside the one that was drawn (see `choose_tokens`), so that the KL of the two distributions over these can be told.

    Attributes:
        temperature: what the logits are divided by; 0 takes the likeliest token.
        top_k: draw only from the k likeliest tokens; 0 for all. Ties at the edge go to the lower token id.
        top_p: draw only from the smallest set of likeliest tokens that holds at least this probability (1904.09751); 1
            for all. Without top_k it sorts the whole vocabulary at every token, which is slow on a CPU.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise UserError(
                f"sampling.temperature is {self.temperature}, expected a number >= 0",
                fix="use 1 for the model's own distribution, 0 for the likeliest token.",
            )
        if self.top_k < 0:
            raise UserError(f"sampling.top_k is {self.top_k}, expected an integer >= 0", fix="use 0 for all tokens.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"sampling.top_p is {self.top_p}, expected 0 < top_p <= 1", fix="use 1 for all tokens.")

    @property
    def restricted(self) -> bool:
        """Whether some tokens are ruled out."""
        return self.top_k > 0 or self.top_p < 1

    def support_size(self, vocabulary: int) -> int | None:
        """How many tokens may be left of a vocabulary; None where that is not known to be few, or the likeliest is taken."""
        return min(self.top_k, vocabulary) if self.top_k and self.temperature else None


def sample_tokens(
    key: PRNGKeyArray, logits: Float[Array, "batch vocab"], config: SamplingConfig
) -> tuple[Int[Array, " batch"], Float32[Array, " batch"]]:
    """Draws a token for every row, each with its own noise.

    A token of probability 0 (logit −inf) is never drawn, as long as some token of the row has a finite logit.

    Args:
        key: the draw depends on nothing else; fold the step into it.
        logits: unnormalised log-probabilities.
        config: static under `jax.jit`.

    Returns:
        Tokens, and their log-probabilities (nats) under the distribution that they were really drawn from: after
        temperature and filters. They are 0 at temperature 0.
    """
    return choose_tokens(jax.random.uniform(key, (len(logits), 2)), logits, config)[:2]


def choose_tokens(
    uniforms: Float32[Array, "batch 2"], logits: Float[Array, "batch vocab"], config: SamplingConfig
) -> tuple[Int[Array, " batch"], Float32[Array, " batch"], Int[Array, "batch kept"] | None]:
    """As `sample_tokens`, from numbers that were drawn before: uniform in [0, 1), two a row.

    Beside the two it returns, with top-k, the tokens that the filters left, and −1 in the places of others (else None).
    """
    logits = logits.astype(jnp.float32)
    if config.temperature == 0:
        tokens = jnp.argmax(logits, axis=-1)
        return tokens, jnp.zeros(tokens.shape, jnp.float32), None
    logits = logits / config.temperature
    if not config.restricted:
        return *_sample_in_blocks(uniforms, logits), None
    vocabulary = logits.shape[-1]
    likeliest, tokens = jax.lax.top_k(logits, min(config.top_k, vocabulary) if config.top_k else vocabulary)
    kept = _keep_nucleus(likeliest, config.top_p)
    ranks, log_probs = _sample_in_blocks(uniforms, kept)
    support = jnp.where(kept > -jnp.inf, tokens, -1) if config.top_k else None
    return jnp.take_along_axis(tokens, ranks[:, None], axis=-1)[:, 0], log_probs, support


def without_early_end(
    logits: Float[Array, "batch vocab"], length: Int[Array, "*batch"], end_token: int, minimum_new_tokens: int
) -> Float[Array, "batch vocab"]:
    """The logits with the end token ruled out where a response has fewer than the minimum of tokens.

    Args:
        logits: of the next token.
        length: tokens of each response so far, or of all.
        end_token: which token ends a response.
        minimum_new_tokens: 0 leaves the logits as they are.
    """
    if minimum_new_tokens == 0:
        return logits
    return logits.at[:, end_token].add(jnp.where(length < minimum_new_tokens, -jnp.inf, 0.0))


def _keep_nucleus(descending_logits: Float32[Array, "batch kept"], top_p: float) -> Float32[Array, "batch kept"]:
    """Rules out the tokens before which `top_p` has been reached: the token that crosses it stays, the first always."""
    if top_p == 1:
        return descending_logits
    reached = jnp.cumsum(jax.nn.softmax(descending_logits, axis=-1), axis=-1)
    reached_before = jnp.pad(reached[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(reached_before < top_p, descending_logits, -jnp.inf)


def _sample_in_blocks(
    uniforms: Float32[Array, "batch 2"], logits: Float32[Array, "batch vocab"]
) -> tuple[Int[Array, " batch"], Float32[Array, " batch"]]:
    """Inverts the cumulative distribution in two steps: which block of tokens, then which token of the block.

    Two sums over √vocab numbers replace noise for every token, which for small models costs as much as the network.
    Each step has a uniform of its own: one number of 24 bits could not reach all tokens of a large vocabulary's tail.
    """
    batch, vocabulary = logits.shape
    block = 1 << round(math.log2(vocabulary) / 2)
    padding = -vocabulary % block
    shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.pad(jnp.exp(shifted), ((0, 0), (0, padding))).reshape(batch, -1, block)
    block_weights = jnp.sum(weights, axis=-1)
    chosen_block = _invert_cumulative(uniforms[:, 0], block_weights)
    inner_weights = jnp.take_along_axis(weights, chosen_block[:, None, None], axis=1)[:, 0]
    chosen = chosen_block * block + _invert_cumulative(uniforms[:, 1], inner_weights)
    tokens = jnp.minimum(chosen, vocabulary - 1)  # matters only for rows of NaN, which must not index out of range
    log_normalizer = jnp.log(jnp.sum(block_weights, axis=-1))
    return tokens, jnp.take_along_axis(shifted, tokens[:, None], axis=-1)[:, 0] - log_normalizer


def _invert_cumulative(
    uniform: Float32[Array, " batch"], weights: Float32[Array, "batch choices"]
) -> Int[Array, " batch"]:
    """First choice of positive weight whose cumulative weight exceeds uniform · total.

    It is the last of positive weight if rounding leaves none. Parallel sums need not be monotone in the last bit, hence
    the explicit demand for a positive weight.
    """
    cumulative = jnp.cumsum(weights, axis=-1)
    positive = weights > 0
    exceeding = positive & (cumulative > uniform[:, None] * cumulative[:, -1:])
    last_positive = weights.shape[-1] - 1 - jnp.argmax(positive[:, ::-1], axis=-1)
    return jnp.where(jnp.any(exceeding, axis=-1), jnp.argmax(exceeding, axis=-1), last_positive)
