"""KL estimators as what they claim to be, the coefficient's controller, and where the score lands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.losses import adaptive_kl_coefficient, kl_estimate, kl_shaped_rewards

POLICY = np.asarray([0.5, 0.3, 0.15, 0.05])
REFERENCE = np.asarray([0.25, 0.25, 0.2, 0.3])


def true_kl(p, q):
    return np.sum(p * np.log(p / q))


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_k1_and_k3_average_to_the_divergence_of_policy_from_reference(kind):
    estimates = kl_estimate(jnp.log(POLICY), jnp.log(REFERENCE), kind)
    np.testing.assert_allclose(np.sum(POLICY * np.asarray(estimates)), true_kl(POLICY, REFERENCE), atol=1e-6)


def test_formulas_against_float64():
    difference = np.log(POLICY) - np.log(REFERENCE)
    for kind, expected in (
        ("k1", difference),
        ("k2", difference**2 / 2),
        ("k3", np.exp(-difference) - 1 + difference),
    ):
        np.testing.assert_allclose(kl_estimate(jnp.log(POLICY), jnp.log(REFERENCE), kind), expected, atol=1e-6)


def gradient_of_expected_loss(kind):
    """Gradient of each estimator as a loss under on-policy sampling: the sampling distribution itself is held fixed."""

    def loss(logits):
        estimates = kl_estimate(jax.nn.log_softmax(logits), jnp.log(REFERENCE), kind)
        return jnp.sum(jnp.asarray(POLICY) * estimates)

    return jax.grad(loss)(jnp.log(POLICY))


def test_gradients_as_losses():
    forward = jax.grad(lambda z: jnp.sum(jax.nn.softmax(z) * (jax.nn.log_softmax(z) - jnp.log(REFERENCE))))
    backward = jax.grad(lambda z: jnp.sum(REFERENCE * (jnp.log(REFERENCE) - jax.nn.log_softmax(z))))
    np.testing.assert_allclose(gradient_of_expected_loss("k1"), np.zeros(4), atol=1e-6)
    np.testing.assert_allclose(gradient_of_expected_loss("k2"), forward(jnp.log(POLICY)), atol=1e-6)
    np.testing.assert_allclose(gradient_of_expected_loss("k3"), backward(jnp.log(POLICY)), atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.floats(-20, 0), st.floats(-20, 0))
def test_k2_and_k3_are_never_negative_and_all_vanish_for_equal_policies(log_prob, reference):
    for kind in ("k2", "k3"):
        assert kl_estimate(jnp.float32(log_prob), jnp.float32(reference), kind) >= 0
    for kind in ("k1", "k2", "k3"):
        assert kl_estimate(jnp.float32(log_prob), jnp.float32(log_prob), kind) == 0


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(jnp.zeros(1), jnp.zeros(1), "k4")


@pytest.mark.parametrize(("kl", "factor"), [(6.0, 1.0), (6.6, 1.00512), (60.0, 1.01024), (0.0, 0.98976)])
def test_controller_is_proportional_clipped_and_counts_episodes(kl, factor):
    coefficient = adaptive_kl_coefficient(0.15, kl, target=6.0, horizon=10_000, episodes=512)
    np.testing.assert_allclose(coefficient, 0.15 * factor, rtol=1e-6)


def test_rewards_against_a_loop_with_the_score_on_the_last_response_token():
    mask = np.asarray([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
    kl = np.random.default_rng(0).normal(size=mask.shape).astype(np.float32)
    score = np.asarray([0.3, -1.25, 2.0, 7.0], np.float32)
    expected = np.zeros(mask.shape)
    for row in range(len(mask)):
        length = int(mask[row].sum())
        for column in range(length):
            expected[row, column] = -0.1 * kl[row, column] + (score[row] if column == length - 1 else 0.0)
    np.testing.assert_allclose(kl_shaped_rewards(score, kl, mask, 0.1), expected, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(padding=st.sampled_from([0, 3]), garbage=st.sampled_from([np.nan, np.inf, 1e30]))
def test_padding_columns_and_empty_rows_leak_nothing(padding, garbage):
    mask = np.asarray([[1, 1, 0], [1, 1, 1], [0, 0, 0]], bool)
    kl = np.where(mask, 0.5, garbage).astype(np.float32)
    score = np.asarray([1.0, 2.0, garbage], np.float32)
    expected = [[-0.05, 0.95, 0.0], [-0.05, -0.05, 1.95], [0.0, 0.0, 0.0]]
    rewards = kl_shaped_rewards(
        score,
        np.pad(kl, ((0, 0), (0, padding)), constant_values=garbage),
        np.pad(mask, ((0, 0), (0, padding))),
        0.1,
    )
    np.testing.assert_allclose(rewards, np.pad(expected, ((0, 0), (0, padding))), atol=1e-6)
