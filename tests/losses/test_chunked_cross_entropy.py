"""Cross-entropy with its gradient beside it: against torch, for any chunks and masks, and what it computes and keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.losses import cross_entropy_of_states

BATCH, TIME, WIDTH, VOCAB = 3, 7, 5, 11


def example(seed=0, time=TIME):
    random = np.random.default_rng(seed)
    hidden = random.normal(size=(BATCH, time, WIDTH)).astype(np.float32)
    kernel = random.normal(size=(WIDTH, VOCAB)).astype(np.float32)
    return hidden, kernel, random.integers(0, VOCAB, (BATCH, time)), random.random((BATCH, time)) < 0.6


def by_torch(hidden, kernel, targets, mask, cap=None, tokens=VOCAB):
    """The sum, and the gradients of 3 times the sum, in float64."""
    hidden, kernel = (torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in (hidden, kernel))
    logits = hidden @ kernel
    logits = (logits if cap is None else cap * torch.tanh(logits / cap))[..., :tokens]
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.as_tensor(targets).flatten(), reduction="none"
    )
    total = losses[torch.as_tensor(mask).flatten()].sum()
    (3 * total).backward()
    return total.detach(), hidden.grad, kernel.grad


@pytest.mark.parametrize("rules", [{}, {"soft_cap": 2.0, "token_count": 9}], ids=str)
@pytest.mark.parametrize("flatten", [True, False])
@pytest.mark.parametrize("chunk_size", [None, 1, 9, 1000])
def test_values_and_gradients_agree_with_torch(chunk_size, flatten, rules):
    hidden, kernel, targets, mask = example()
    targets %= rules.get("token_count", VOCAB)

    def loss(hidden, kernel):
        total, weight = cross_entropy_of_states(
            hidden, kernel, targets, mask, chunk_size=chunk_size, flatten=flatten, **rules
        )
        return 3 * total, (total, weight)

    (_, (total, weight)), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(hidden, kernel)
    expected = by_torch(hidden, kernel, targets, mask, rules.get("soft_cap"), rules.get("token_count", VOCAB))
    for found, wanted in zip((total, *gradients), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert weight == mask.sum()
    alone, _ = cross_entropy_of_states(hidden, kernel, targets, mask, chunk_size=chunk_size, flatten=flatten, **rules)
    np.testing.assert_allclose(alone, expected[0], rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), time=st.sampled_from([1, 5, 8]), chunk_size=st.integers(1, 30))
def test_chunks_change_nothing_and_what_does_not_count_has_no_gradient(seed, time, chunk_size):
    hidden, kernel, targets, mask = example(seed, time)

    def value_and_gradients(chunk_size):
        def loss(hidden, kernel):
            return cross_entropy_of_states(hidden, kernel, targets, mask, chunk_size=chunk_size)[0]

        value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(hidden, kernel)
        return value, *gradients

    in_chunks = value_and_gradients(chunk_size)
    for found, expected in zip(in_chunks, value_and_gradients(None), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not np.asarray(in_chunks[1])[~mask].any()


def test_gradients_have_the_dtypes_of_their_arrays_and_are_added_up_in_float32():
    hidden, kernel, targets, mask = example(time=256)
    half = [jnp.asarray(array, jnp.bfloat16) for array in (hidden, kernel)]

    def gradients(hidden, kernel, chunk_size):
        def loss(*arrays):
            return cross_entropy_of_states(*arrays, targets, mask, chunk_size=chunk_size)[0]

        return jax.grad(loss, argnums=(0, 1))(hidden, kernel)

    found = gradients(*half, BATCH)  # a column a chunk: 256 parts of one sum
    assert [gradient.dtype for gradient in found] == [jnp.bfloat16] * 2
    exact = gradients(*(array.astype(jnp.float32) for array in half), None)
    for rough, fine in zip(found, exact, strict=True):
        # A bfloat16 is right to 1/256 of itself; added up in bfloat16, the kernel's would be off by several times that.
        np.testing.assert_allclose(rough.astype(jnp.float32), fine, rtol=1 / 128, atol=0.02)


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "jaxpr")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def of_gradient(argnums, chunk_size):
    """What the compiled gradient of 4 x 64 positions is traced to."""
    hidden, kernel, targets, _ = example(time=64)

    def loss(hidden, kernel):
        return cross_entropy_of_states(hidden, kernel, targets, np.ones_like(targets, bool), chunk_size=chunk_size)[0]

    return list(equations(jax.make_jaxpr(jax.grad(loss, argnums=argnums))(hidden, kernel).jaxpr))


def test_logits_are_computed_once_and_never_all_kept():
    for argnums, products in (((0, 1), 3), (0, 2)):  # with a frozen kernel, no gradient of it
        found = of_gradient(argnums, 12)
        assert sum(equation.primitive.name == "dot_general" for equation in found) == products
        assert max(variable.aval.size for equation in found for variable in equation.outvars) < BATCH * 64 * VOCAB
    everything = of_gradient((0, 1), None)
    assert max(variable.aval.size for equation in everything for variable in equation.outvars) >= BATCH * 64 * VOCAB
