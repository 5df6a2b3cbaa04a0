"""Log-probabilities of given tokens from hidden states, without ever holding the logits of all positions.

Logits of shape [batch, time, vocab] are by far the largest array of a training step. Here they are computed a chunk of
positions at a time and computed again in the backward pass, so that memory follows the hidden states and not the
vocabulary.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Shaped

from rlhf.losses.masking import masked_sum

NEVER = -1e9
"""Logit of what stands for no token."""


def token_log_probs(
    hidden: Float[Array, "batch time width"],
    kernel: Float[Array, "width vocab"],
    targets: Int[Array, "batch time"],
    *,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    soft_cap: float | None = None,
    token_count: int | None = None,
    flatten: bool = True,
) -> Float32[Array, "batch time"]:
    """Log-probability of each target under softmax(hidden · kernel / temperature).

    Args:
        hidden: final hidden states; `hidden[b, t]` predicts `targets[b, t]`, so the caller shifts one against the
            other.
        kernel: output matrix; cast to the dtype of `hidden` for the product, which accumulates in float32.
        targets: token ids in [0, vocab); at padding any valid id will do.
        temperature: what the logits are divided by; log-probabilities that are to match a sampler need the sampler's.
        chunk_size: positions (of the whole batch) whose logits exist at a time, rounded to whole columns of the batch;
            None for all at once, which is quickest where it fits.
        soft_cap: logits are bent to stay within ± this before all else (2408.00118); None for no cap.
        token_count: columns of the kernel that stand for a token, from the first on; the others get probability 0. None
            for all.
        flatten: take the product of matrices, [batch · time, width] the first, which is quicker on a CPU; False where the time
            axis is spread over devices, which two axes in one cannot be.

    Returns:
        Log-probabilities in nats.
    """
    rules = {"temperature": temperature, "soft_cap": soft_cap, "token_count": token_count, "flatten": flatten}
    logits_of = partial(_logits, kernel=kernel, **rules)
    (log_probs,) = _map_positions(_log_prob, logits_of, hidden, targets, chunk_size)
    return log_probs


def token_log_probs_and_entropy(
    hidden: Float[Array, "batch time width"],
    kernel: Float[Array, "width vocab"],
    targets: Int[Array, "batch time"],
    *,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    soft_cap: float | None = None,
    token_count: int | None = None,
    support: Int[Array, "batch time kept"] | None = None,
    flatten: bool = True,
) -> tuple[Float32[Array, "batch time"], Float32[Array, "batch time"]]:
    """As `token_log_probs`, with the entropy of the whole distribution at each position.

    With a support it is the distribution over these tokens alone, renormalised: that of a sampler that ruled out all others.

    Args:
        hidden: final hidden states, aligned with the targets.
        kernel: output matrix.
        targets: token ids in [0, vocab).
        temperature: what the logits are divided by; the entropy is that of the tempered distribution.
        chunk_size: positions whose logits exist at a time; None for all at once.
        soft_cap: bound of the logits; None for none.
        token_count: columns of the kernel that stand for a token; None for all.
        support: token ids, the target's among them, that have a probability; −1 stands for none. None for all tokens.
        flatten: see `token_log_probs`.

    Returns:
        Log-probabilities and entropies, both in nats.
    """
    rules = {"temperature": temperature, "soft_cap": soft_cap, "token_count": token_count, "flatten": flatten}
    logits_of = partial(_logits, kernel=kernel, **rules)
    if support is not None:
        choices = jnp.concatenate([targets[..., None], support], axis=-1)
        return _map_positions(_log_prob_and_entropy_among, logits_of, hidden, choices, chunk_size)
    return _map_positions(_log_prob_and_entropy, logits_of, hidden, targets, chunk_size)


def finish_logits(
    logits: Float32[Array, "*positions vocab"], *, soft_cap: float | None, token_count: int | None
) -> Float32[Array, "*positions vocab"]:
    """From products with the output matrix to the logits of a model that caps them, or has more rows than tokens.

    Args:
        logits: the products.
        soft_cap: logits become cap · tanh(logit / cap); None for no cap.
        token_count: how many stand for a token; the rest become so low that their probability is 0. None for all.
    """
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    if token_count is not None:
        # A number and not -inf, which an entropy would multiply by a probability of 0.
        logits = jnp.where(jnp.arange(logits.shape[-1]) < token_count, logits, NEVER)
    return logits


def cross_entropy(
    log_probs: Float[Array, "batch time"], mask: Bool[Array, "batch time"]
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """Negative log-likelihood of the target tokens.

    Args:
        log_probs: log-probability of each target.
        mask: True where the target counts.

    Returns:
        The sum in nats, and the number of tokens in it.
    """
    return masked_sum(-log_probs, mask)


def _log_prob(logits: Float32[Array, "*positions vocab"], targets: Int[Array, " *positions"]) -> tuple[Array]:
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return (target_logits - jax.nn.logsumexp(logits, axis=-1),)


def _log_prob_and_entropy(
    logits: Float32[Array, "*positions vocab"], targets: Int[Array, " *positions"]
) -> tuple[Array, Array]:
    return _log_prob_and_entropy_of(jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0], logits)


def _log_prob_and_entropy_among(
    logits: Float32[Array, "*positions vocab"], choices: Int[Array, "*positions kept_and_one"]
) -> tuple[Array, Array]:
    """Of the first choice, which is one of the others again, in the distribution over the others."""
    chosen = jnp.take_along_axis(logits, jnp.maximum(choices, 0), axis=-1)
    return _log_prob_and_entropy_of(chosen[..., 0], jnp.where(choices[..., 1:] >= 0, chosen[..., 1:], NEVER))


def _log_prob_and_entropy_of(
    target_logits: Float32[Array, " *positions"], logits: Float32[Array, "*positions choices"]
) -> tuple[Array, Array]:
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    expected_logit = jnp.sum(jnp.exp(logits - log_normalizer[..., None]) * logits, axis=-1)
    return target_logits - log_normalizer, log_normalizer - expected_logit


def _logits(
    hidden: Float[Array, "*positions width"],
    kernel: Float[Array, "width vocab"],
    temperature: float,
    soft_cap: float | None,
    token_count: int | None,
    flatten: bool,
) -> Float32[Array, "*positions vocab"]:
    # Flattened to matrices, because XLA on a CPU is several times slower at the gradient of a batched product.
    rows = hidden.reshape(-1, hidden.shape[-1]) if flatten else hidden
    logits = jnp.matmul(rows, kernel.astype(rows.dtype), preferred_element_type=jnp.float32)
    logits = finish_logits(logits, soft_cap=soft_cap, token_count=token_count) / temperature
    return logits.reshape(*hidden.shape[:-1], -1)


def _map_positions(
    function: Callable[..., tuple[Array, ...]],
    logits_of: Callable[[Array], Float32[Array, "*positions vocab"]],
    hidden: Float[Array, "batch time width"],
    targets: Int[Array, "batch time *choices"],
    chunk_size: int | None,
) -> tuple[Float32[Array, "batch time"], ...]:
    """Applies `function(logits, targets)` to all positions, chunk by chunk."""

    def from_hidden(chunk_hidden, chunk_targets):
        return function(logits_of(chunk_hidden), chunk_targets)

    batch, time = targets.shape[:2]
    chunks = chunk_count((batch, time), chunk_size)
    if chunks == 1:
        return from_hidden(hidden, targets)

    def join(values):
        return jnp.moveaxis(values, 0, 2).reshape(batch, -1)[:, :time]

    recomputed = jax.checkpoint(from_hidden)
    pieces = split_columns(hidden, chunks), split_columns(targets, chunks)
    return tuple(join(result) for result in jax.lax.map(lambda chunk: recomputed(*chunk), pieces))


def chunk_count(shape: tuple[int, int], chunk_size: int | None) -> int:
    """Into how many chunks of whole columns positions of the shape [batch, time] go, if a chunk has `chunk_size` of them."""
    batch, time = shape
    columns = time if chunk_size is None else max(1, chunk_size // batch)
    return -(-time // columns)


def split_columns(
    values: Shaped[Array, "batch time *rest"], chunks: int
) -> Shaped[Array, "chunks batch columns *rest"]:
    """Divides the time axis into chunks, zeros at the end of some.

    A chunk takes every `chunks`-th column of every row, not a run of neighbours: batch and time axes that are spread over devices
    stay spread inside each chunk, whereas contiguous chunks of a spread axis would be computed one device at a time.
    """
    batch, time, *rest = values.shape
    columns = -(-time // chunks)
    padded = jnp.pad(values, ((0, 0), (0, columns * chunks - time)) + ((0, 0),) * len(rest))
    return jnp.moveaxis(padded.reshape(batch, columns, chunks, *rest), 2, 0)
