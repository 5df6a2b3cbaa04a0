"""Cross-entropy from hidden states, whose gradient is taken beside its value: the logits are computed once and never all kept.

A sum of losses has a gradient that needs nothing from what is done with the sum, but for one factor. So each chunk of positions
is differentiated as soon as its logits are there, and only the gradients of hidden states and output matrix, which are small, wait
for the backward pass. `token_log_probs` in chunks, whose caller may weigh each token later, has to compute its logits twice.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int

from rlhf.losses.language_model import chunk_count, cross_entropy, split_columns, token_log_probs


def cross_entropy_of_states(
    hidden: Float[Array, "batch time width"],
    kernel: Float[Array, "width vocab"],
    targets: Int[Array, "batch time"],
    mask: Bool[Array, "batch time"],
    *,
    chunk_size: int | None = None,
    soft_cap: float | None = None,
    token_count: int | None = None,
    flatten: bool = True,
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """Negative log-likelihood of the targets under softmax(hidden · kernel).

    Args:
        hidden: final hidden states; `hidden[b, t]` predicts `targets[b, t]`.
        kernel: output matrix.
        targets: token ids in [0, vocab); where they do not count any valid id will do.
        mask: True where the target counts.
        chunk_size: positions (of the whole batch) whose logits exist at a time, rounded to whole columns of the batch; None
            for all at once.
        soft_cap: see `token_log_probs`, as the next two.
        token_count: columns of the kernel that stand for a token.
        flatten: whether to take the product of matrices.

    Returns:
        The sum in nats, and the number of tokens in it.
    """
    rules = {"soft_cap": soft_cap, "token_count": token_count, "flatten": flatten}
    chunks = chunk_count(targets.shape, chunk_size)
    if chunks == 1:
        return cross_entropy(token_log_probs(hidden, kernel, targets, **rules), mask)
    total = _total(tuple(rules.items()), chunks, hidden, kernel, targets, mask)
    return total, jnp.sum(mask, dtype=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _total(rules, chunks, hidden, kernel, targets, mask):
    def add(total, chunk):
        return total + _of_chunk(rules, chunk[0], kernel, *chunk[1:]), None

    return lax.scan(add, jnp.float32(0), _chunks(chunks, hidden, targets, mask))[0]


def _of_chunk(rules, hidden, kernel, targets, mask):
    return cross_entropy(token_log_probs(hidden, kernel, targets, **dict(rules)), mask)[0]


def _chunks(chunks, *arrays):
    return tuple(split_columns(array, chunks) for array in arrays)


def _forward(rules, chunks, hidden, kernel, targets, mask):
    """The total, and its gradients; that of the kernel, which is a sum over chunks, in float32."""
    kernel_counts = kernel.perturbed  # not that of a frozen base
    hidden, kernel, targets, mask = (argument.value for argument in (hidden, kernel, targets, mask))
    differentiate = jax.value_and_grad(partial(_of_chunk, rules), argnums=(0, 1) if kernel_counts else (0,))

    def add(carry, chunk):
        total, to_kernel = carry
        value, (to_hidden, *to_kernel_of_chunk) = differentiate(chunk[0], kernel, *chunk[1:])
        if kernel_counts:
            to_kernel = to_kernel + to_kernel_of_chunk[0].astype(jnp.float32)
        return (total + value, to_kernel), to_hidden

    start = jnp.float32(0), jnp.zeros(kernel.shape, jnp.float32) if kernel_counts else None
    (total, to_kernel), to_hidden = lax.scan(add, start, _chunks(chunks, hidden, targets, mask))
    batch, time, width = hidden.shape
    to_hidden = jnp.moveaxis(to_hidden, 0, 2).reshape(batch, -1, width)[:, :time]
    return total, (to_hidden, to_kernel, kernel)


def _backward(rules, chunks, saved, factor):
    to_hidden, to_kernel, kernel = saved
    to_kernel = None if to_kernel is None else (factor * to_kernel).astype(kernel.dtype)
    return (factor * to_hidden).astype(to_hidden.dtype), to_kernel, None, None


_total.defvjp(_forward, _backward, symbolic_zeros=True)
