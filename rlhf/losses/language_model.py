"""Log-probabilities of given tokens from hidden states, without ever holding the logits of all positions.

Logits of shape [batch, time, vocab] are by far the largest array of a training step. Here they are computed a chunk of
positions at a time and computed again in the backward pass, so that memory follows the hidden states and not the
vocabulary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from rlhf.losses.masking import masked_sum


def token_log_probs(
    hidden: Float[Array, "batch time width"],
    kernel: Float[Array, "width vocab"],
    targets: Int[Array, "batch time"],
    *,
    temperature: float = 1.0,
    chunk_size: int | None = None,
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

    Returns:
        Log-probabilities in nats.
    """
    (log_probs,) = _map_positions(_log_prob, hidden, kernel, targets, temperature, chunk_size)
    return log_probs


def token_log_probs_and_entropy(
    hidden: Float[Array, "batch time width"],
    kernel: Float[Array, "width vocab"],
    targets: Int[Array, "batch time"],
    *,
    temperature: float = 1.0,
    chunk_size: int | None = None,
) -> tuple[Float32[Array, "batch time"], Float32[Array, "batch time"]]:
    """As `token_log_probs`, with the entropy of the whole distribution at each position.

    Args:
        hidden: final hidden states, aligned with the targets.
        kernel: output matrix.
        targets: token ids in [0, vocab).
        temperature: what the logits are divided by; the entropy is that of the tempered distribution.
        chunk_size: positions whose logits exist at a time; None for all at once.

    Returns:
        Log-probabilities and entropies, both in nats.
    """
    return _map_positions(_log_prob_and_entropy, hidden, kernel, targets, temperature, chunk_size)


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
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    expected_logit = jnp.sum(jnp.exp(logits - log_normalizer[..., None]) * logits, axis=-1)
    return target_logits - log_normalizer, log_normalizer - expected_logit


def _map_positions(
    function: Callable[..., tuple[Array, ...]],
    hidden: Float[Array, "batch time width"],
    kernel: Float[Array, "width vocab"],
    targets: Int[Array, "batch time"],
    temperature: float,
    chunk_size: int | None,
) -> tuple[Float32[Array, "batch time"], ...]:
    """Applies `function(logits, targets)` to all positions, chunk by chunk."""

    def from_hidden(chunk_hidden, chunk_targets):
        # Flattened to matrices, because XLA on a CPU is several times slower at the gradient of a batched product.
        flat = chunk_hidden.reshape(-1, chunk_hidden.shape[-1])
        logits = jnp.matmul(flat, kernel.astype(flat.dtype), preferred_element_type=jnp.float32)
        return function(logits.reshape(*chunk_targets.shape, -1) / temperature, chunk_targets)

    batch, time = targets.shape
    columns = time if chunk_size is None else max(1, chunk_size // batch)
    if columns >= time:
        return from_hidden(hidden, targets)
    chunks = -(-time // columns)
    # A chunk takes every `chunks`-th column of every row, not a run of neighbours: batch and time axes that are spread
    # over devices stay spread inside each chunk, whereas contiguous chunks of a spread axis would be computed one
    # device at a time.
    padding = columns * chunks - time

    def split(values):
        padded = jnp.pad(values, ((0, 0), (0, padding)) + ((0, 0),) * (values.ndim - 2))
        return jnp.moveaxis(padded.reshape(batch, columns, chunks, *values.shape[2:]), 2, 0)

    def join(values):
        return jnp.moveaxis(values, 0, 2).reshape(batch, columns * chunks)[:, :time]

    recomputed = jax.checkpoint(from_hidden)
    results = jax.lax.map(lambda chunk: recomputed(*chunk), (split(hidden), split(targets)))
    return tuple(join(result) for result in results)
