"""Advantages against a loop straight from the definition; whitening against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.losses import explained_variance, generalized_advantages, whiten


def contiguous_mask(lengths, time):
    return np.arange(time) < np.asarray(lengths)[:, None]


def advantages_by_definition(rewards, values, length, discount, decay):
    """A_t = Σ_s (γλ)^(s−t) δ_s over the real tokens of one response (equation 16 of 1506.02438)."""
    values = np.append(values[:length].astype(np.float64), 0.0)
    errors = [rewards[t] + discount * values[t + 1] - values[t] for t in range(length)]
    return [sum((discount * decay) ** (s - t) * errors[s] for s in range(t, length)) for t in range(length)]


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 999),
    lengths=st.lists(st.integers(0, 6), min_size=3, max_size=3),
    discount=st.floats(0, 1),
    decay=st.floats(0, 1),
    garbage=st.sampled_from([0.0, 1e30, np.nan]),
)
def test_equal_to_the_definition_whatever_the_padding_holds(seed, lengths, discount, decay, garbage):
    random = np.random.default_rng(seed)
    mask = contiguous_mask(lengths, 6)
    rewards, values = (np.where(mask, random.normal(size=mask.shape), garbage).astype(np.float32) for _ in range(2))
    advantages, returns = generalized_advantages(rewards, values, mask, discount=discount, decay=decay)
    expected = np.zeros(mask.shape)
    for row, length in enumerate(lengths):
        expected[row, :length] = advantages_by_definition(rewards[row], values[row], length, discount, decay)
    np.testing.assert_allclose(advantages, expected, atol=1e-5)
    np.testing.assert_allclose(returns, np.where(mask, expected + np.where(mask, values, 0), 0), atol=1e-5)


def test_full_trust_in_rewards_gives_the_sum_of_what_follows():
    rewards = jnp.asarray([[1.0, 2.0, 4.0, 0.0]])
    values = jnp.asarray([[0.5, 0.5, 0.5, 9.0]])
    mask = jnp.asarray([[True, True, True, False]])
    advantages, returns = generalized_advantages(rewards, values, mask, discount=1.0, decay=1.0)
    np.testing.assert_allclose(returns, [[7.0, 6.0, 4.0, 0.0]])
    np.testing.assert_allclose(advantages, [[6.5, 5.5, 3.5, 0.0]])


@pytest.mark.parametrize("shift_mean", [True, False])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), padding=st.sampled_from([0, 3]), garbage=st.sampled_from([1e30, np.nan, np.inf]))
def test_whitening_uses_the_population_statistics_of_real_positions(shift_mean, seed, padding, garbage):
    random = np.random.default_rng(seed)
    mask = contiguous_mask([4, 2, 3], 4 + padding)
    values = np.where(mask, random.normal(3.0, 2.0, size=mask.shape), garbage).astype(np.float32)
    real = values[mask].astype(np.float64)
    expected = (real - real.mean()) / np.sqrt(real.var() + 1e-8) + (0.0 if shift_mean else real.mean())
    whitened = np.asarray(whiten(values, mask, shift_mean=shift_mean))
    np.testing.assert_allclose(whitened[mask], expected, atol=1e-5)
    np.testing.assert_array_equal(whitened[~mask], 0.0)


def test_whitening_one_position_or_none_stays_finite():
    np.testing.assert_array_equal(whiten(jnp.asarray([[5.0, 7.0]]), jnp.asarray([[True, False]])), [[0.0, 0.0]])
    np.testing.assert_array_equal(whiten(jnp.ones((1, 2)), jnp.zeros((1, 2), bool)), [[0.0, 0.0]])


def test_explained_variance():
    mask = jnp.asarray([[True, True, True, False]])
    returns = jnp.asarray([[1.0, 2.0, 6.0, jnp.nan]])
    assert explained_variance(returns, returns, mask) == 1.0
    np.testing.assert_allclose(explained_variance(jnp.full((1, 4), 3.0), returns, mask), 0.0, atol=1e-6)
    np.testing.assert_allclose(explained_variance(returns + 1.0, returns, mask), 1 - 1 / (14 / 3), atol=1e-6)
    assert explained_variance(returns, jnp.ones((1, 4)), mask) == 0.0
