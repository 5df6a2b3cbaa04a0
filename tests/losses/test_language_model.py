"""Log-probabilities from hidden states: against torch, chunked against whole, and the memory that chunking is for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.losses import cross_entropy, token_log_probs, token_log_probs_and_entropy

BATCH, TIME, WIDTH, VOCAB = 3, 7, 5, 11


def example(seed=0, batch=BATCH, time=TIME):
    random = np.random.default_rng(seed)
    hidden = random.normal(size=(batch, time, WIDTH)).astype(np.float32)
    kernel = random.normal(size=(WIDTH, VOCAB)).astype(np.float32)
    targets = random.integers(0, VOCAB, size=(batch, time))
    return hidden, kernel, targets


def torch_log_probs_and_entropy(hidden, kernel, targets, temperature):
    log_probs = torch.log_softmax(hidden @ kernel / temperature, dim=-1)
    chosen = torch.gather(log_probs, -1, torch.as_tensor(targets)[..., None])[..., 0]
    return chosen, -(log_probs.exp() * log_probs).sum(-1)


@pytest.mark.parametrize("chunk_size", [None, 1, 9, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_agree_with_torch(chunk_size, temperature):
    hidden, kernel, targets = example()
    weights = np.random.default_rng(1).normal(size=(2, BATCH, TIME)).astype(np.float32)

    def loss(hidden, kernel):
        log_probs, entropy = token_log_probs_and_entropy(
            hidden, kernel, targets, temperature=temperature, chunk_size=chunk_size
        )
        return jnp.sum(weights[0] * log_probs + weights[1] * entropy), (log_probs, entropy)

    (_, (log_probs, entropy)), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(hidden, kernel)
    torch_hidden = torch.tensor(hidden, dtype=torch.float64, requires_grad=True)
    torch_kernel = torch.tensor(kernel, dtype=torch.float64, requires_grad=True)
    expected, expected_entropy = torch_log_probs_and_entropy(torch_hidden, torch_kernel, targets, temperature)
    (torch.as_tensor(weights[0]) * expected + torch.as_tensor(weights[1]) * expected_entropy).sum().backward()
    np.testing.assert_allclose(log_probs, expected.detach(), atol=1e-5)
    np.testing.assert_allclose(entropy, expected_entropy.detach(), atol=1e-5)
    np.testing.assert_allclose(gradients[0], torch_hidden.grad, atol=1e-5)
    np.testing.assert_allclose(gradients[1], torch_kernel.grad, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 9])
def test_over_a_support_it_is_the_softmax_of_its_tokens(chunk_size):
    hidden, kernel, targets = example()
    random = np.random.default_rng(2)
    others = random.permuted(np.tile(np.arange(VOCAB), (BATCH, TIME, 1)), axis=-1)[..., :4]
    support = np.concatenate([np.where(others == targets[..., None], -1, others), targets[..., None]], axis=-1)

    def loss(hidden):
        found = token_log_probs_and_entropy(
            hidden, kernel, targets, temperature=0.7, chunk_size=chunk_size, support=support
        )
        return jnp.sum(found[0] + 0.5 * found[1]), found

    (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(hidden)
    torch_hidden = torch.tensor(hidden, dtype=torch.float64, requires_grad=True)
    logits = torch_hidden @ torch.tensor(kernel, dtype=torch.float64) / 0.7
    left = torch.as_tensor((np.arange(VOCAB) == support[..., None]).any(axis=2))
    log_probs = torch.log_softmax(logits.masked_fill(~left, -torch.inf), dim=-1)
    entropy = -(log_probs.exp() * log_probs.masked_fill(~left, 0)).sum(-1)
    chosen = torch.gather(log_probs, -1, torch.as_tensor(targets)[..., None])[..., 0]
    (chosen + 0.5 * entropy).sum().backward()
    np.testing.assert_allclose(found[0], chosen.detach(), atol=1e-5)
    np.testing.assert_allclose(found[1], entropy.detach(), atol=1e-5)
    np.testing.assert_allclose(gradient, torch_hidden.grad, atol=1e-5)


def test_capped_logits_and_columns_of_no_token():
    hidden, kernel, targets = example()
    targets = targets % 9
    for chunk_size in (None, 6):
        found = token_log_probs_and_entropy(
            hidden, kernel, targets, temperature=0.7, chunk_size=chunk_size, soft_cap=1.5, token_count=9
        )
        capped = torch.tensor(1.5 * np.tanh(hidden @ kernel[:, :9] / 1.5))
        expected = torch_log_probs_and_entropy(capped, torch.eye(9), targets, 0.7)
        for value, correct in zip(found, expected, strict=True):
            np.testing.assert_allclose(value, correct, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), time=st.sampled_from([5, 7]), chunk_size=st.sampled_from([3, 6, 13]))
def test_chunks_never_change_a_value(seed, time, chunk_size):
    hidden, kernel, targets = example(seed, time=time)
    whole = token_log_probs(hidden, kernel, targets)
    chunked = token_log_probs(hidden, kernel, targets, chunk_size=chunk_size)
    assert chunked.shape == (BATCH, time)
    np.testing.assert_allclose(chunked, whole, atol=1e-6)


def test_bfloat16_states_give_float32_log_probs():
    hidden, kernel, targets = example()
    rounded = jnp.asarray(hidden, jnp.bfloat16)
    log_probs = token_log_probs(rounded, kernel, targets, chunk_size=6)
    assert log_probs.dtype == jnp.float32
    rounded_kernel = jnp.asarray(kernel, jnp.bfloat16).astype(jnp.float32)
    exact = token_log_probs(rounded.astype(jnp.float32), rounded_kernel, targets)
    np.testing.assert_allclose(log_probs, exact, atol=1e-5)


def test_large_logits_neither_overflow_nor_lose_the_entropy():
    hidden = jnp.full((1, 1, 1), 1000.0)
    kernel = jnp.asarray([[1.0, 0.5, -1.0]])
    log_probs, entropy = token_log_probs_and_entropy(hidden, kernel, jnp.asarray([[2]]))
    np.testing.assert_allclose(log_probs, [[-2000.0]])
    np.testing.assert_allclose(entropy, [[0.0]], atol=1e-4)


def largest_array(chunk_size):
    """Elements of the largest array in the compiled gradient, by reading the program, its inner loops included."""
    hidden, kernel, targets = example(batch=4, time=64)

    def loss(hidden, kernel):
        return jnp.sum(token_log_probs(hidden, kernel, targets, chunk_size=chunk_size))

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (variable.aval.size for variable in equation.outvars)
            for parameter in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "jaxpr")):
                inner = getattr(parameter, "jaxpr", parameter)
                if hasattr(inner, "eqns"):
                    yield from sizes(inner)

    return max(sizes(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(hidden, kernel).jaxpr))


def test_the_gradient_keeps_no_array_of_positions_times_vocabulary():
    assert largest_array(None) >= 4 * 64 * VOCAB
    assert largest_array(16) < 4 * 64 * VOCAB


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), padding=st.sampled_from([0, 3]))
def test_cross_entropy_ignores_padding(seed, padding):
    hidden, kernel, targets = example(seed)
    mask = np.random.default_rng(seed).random((BATCH, TIME)) < 0.6
    log_probs = np.asarray(token_log_probs(hidden, kernel, targets))
    expected = -log_probs.astype(np.float64)[mask].sum()
    padded = np.pad(np.where(mask, log_probs, np.nan), ((0, 0), (0, padding)), constant_values=np.inf)
    padded_mask = np.pad(mask, ((0, 0), (0, padding)))
    loss, weight = cross_entropy(padded, padded_mask)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)
    assert weight == mask.sum()
    gradient = jax.grad(lambda values: cross_entropy(values, padded_mask)[0])(jnp.asarray(padded))
    np.testing.assert_array_equal(gradient, np.where(padded_mask, -1.0, 0.0))
