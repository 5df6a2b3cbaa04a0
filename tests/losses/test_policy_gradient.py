"""The clipped losses against torch, and what clipping must do to gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.losses import clipped_surrogate, clipped_value_loss, surrogate_losses


def example(seed=0, shape=(3, 5)):
    random = np.random.default_rng(seed)
    first, second, third = random.normal(scale=0.4, size=(3, *shape)).astype(np.float32)
    return first, first + second, third, random.random(shape) < 0.7


def test_surrogate_value_gradient_and_metrics_agree_with_torch():
    log_probs, old_log_probs, advantages, mask = example()

    def loss(log_probs):
        total, weight, metrics = clipped_surrogate(log_probs, old_log_probs, advantages, mask, 0.2)
        return total, (weight, metrics)

    (value, (weight, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(log_probs)
    current = torch.tensor(log_probs, dtype=torch.float64, requires_grad=True)
    old, advantage = (torch.tensor(array, dtype=torch.float64) for array in (old_log_probs, advantages))
    ratio = (current - old).exp()
    per_token = torch.maximum(-ratio * advantage, -ratio.clamp(0.8, 1.2) * advantage)
    expected = per_token[torch.as_tensor(mask)].sum()
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), atol=1e-5)
    np.testing.assert_allclose(gradient, current.grad, atol=1e-5)
    assert weight == mask.sum()
    ratio = ratio.detach().numpy()[mask]
    for name, per_token in (
        ("clip_fraction", np.abs(ratio - 1) > 0.2),
        ("approximate_kl", np.log(ratio) ** 2 / 2),
        ("ratio", ratio),
    ):
        np.testing.assert_allclose(metrics[name][0], per_token.sum(), atol=1e-5)
        assert metrics[name][1] == mask.sum()


def test_an_unchanged_policy_has_ratio_one_and_the_plain_policy_gradient():
    log_probs, _, advantages, mask = example()
    total, weight, metrics = clipped_surrogate(log_probs, log_probs, advantages, mask, 0.2)
    np.testing.assert_allclose(total, -advantages[mask].sum(dtype=np.float64), atol=1e-5)
    assert metrics["ratio"] == (weight, weight)
    assert metrics["clip_fraction"][0] == metrics["approximate_kl"][0] == 0
    gradient = jax.grad(lambda x: clipped_surrogate(x, log_probs, advantages, mask, 0.2)[0])(log_probs)
    np.testing.assert_allclose(gradient, np.where(mask, -advantages, 0), atol=1e-6)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "moves"),
    [(0.5, 1.0, False), (-0.5, 1.0, True), (0.5, -1.0, True), (-0.5, -1.0, False)],
)
def test_clipping_stops_only_what_has_gone_far_enough(log_ratio, advantage, moves):
    one = jnp.ones((1, 1))
    gradient = jax.grad(lambda x: clipped_surrogate(x, 0 * one, advantage * one, one > 0, 0.2)[0])(log_ratio * one)
    assert bool(gradient[0, 0] != 0) == moves


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), padding=st.sampled_from([0, 3]), garbage=st.sampled_from([np.nan, np.inf, 1e30, -1e30]))
def test_garbage_under_the_mask_reaches_neither_loss_nor_gradient(seed, padding, garbage):
    *arrays, mask = example(seed)
    pad = ((0, 0), (0, padding))
    dirty = [jnp.asarray(np.pad(np.where(mask, array, garbage), pad, constant_values=garbage)) for array in arrays]
    padded_mask = np.pad(mask, pad)

    def losses(first, *others):
        policy_loss, _, policy_metrics = clipped_surrogate(first, others[0], others[1], others[2], 0.2)
        value_loss, _, value_metrics = clipped_value_loss(first, others[0], others[1], others[2], 0.2)
        return policy_loss + value_loss, policy_metrics | value_metrics

    (clean, clean_metrics), clean_gradient = jax.value_and_grad(losses, has_aux=True)(*arrays, mask)
    (loss, metrics), gradient = jax.value_and_grad(losses, has_aux=True)(*dirty, padded_mask)
    np.testing.assert_allclose(loss, clean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, np.pad(clean_gradient, pad), atol=1e-5)
    for name in clean_metrics:
        np.testing.assert_allclose(metrics[name], clean_metrics[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("clip_range", [0.2, None])
def test_value_loss_and_gradient_agree_with_torch(clip_range):
    values, old_values, returns, mask = example(3)

    def loss(values):
        total, weight, metrics = clipped_value_loss(values, old_values, returns, mask, clip_range)
        return total, (weight, metrics)

    (value, (weight, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(values)
    current = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    old, target = (torch.tensor(array, dtype=torch.float64) for array in (old_values, returns))
    error = (current - target) ** 2
    reach = np.inf if clip_range is None else clip_range
    clipped_error = (old + (current - old).clamp(-reach, reach) - target) ** 2
    chosen = torch.where(clipped_error > error + 1e-9, clipped_error, error)
    expected = 0.5 * chosen[torch.as_tensor(mask)].sum()
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), atol=1e-5)
    assert weight == mask.sum()
    np.testing.assert_allclose(metrics["value_error"][0], error.detach().numpy()[mask].sum(), atol=1e-5)
    clipped = (clipped_error > error + 1e-9).numpy()[mask].sum()
    assert metrics["value_clip_fraction"][0] == clipped and (clipped > 0) == (clip_range is not None)
    np.testing.assert_allclose(gradient, current.grad, atol=1e-5)


def test_values_inside_the_range_never_count_as_clipped():
    values, old_values, returns = np.random.default_rng(0).uniform(-0.1, 0.1, size=(3, 20, 50)).astype(np.float32)
    _, _, metrics = clipped_value_loss(values, old_values, returns, np.ones((20, 50), bool), 0.2)
    assert metrics["value_clip_fraction"] == (0, 1000)


def test_dual_clip_bounds_the_loss_where_the_advantage_is_negative_and_only_there():
    log_probs, old_log_probs, advantages, mask = example(shape=(20, 30))
    log_probs = old_log_probs + 4 * (log_probs - old_log_probs)
    losses = np.asarray(surrogate_losses(log_probs, old_log_probs, advantages, mask, 0.2, 3.0))
    ratio = np.exp(log_probs.astype(np.float64) - old_log_probs)
    single = np.minimum(ratio * advantages, np.clip(ratio, 0.8, 1.2) * advantages)
    expected = -np.where(advantages < 0, np.maximum(single, 3.0 * advantages), single)
    np.testing.assert_allclose(losses, np.where(mask, expected, 0), rtol=1e-4, atol=1e-5)
    assert np.any((losses < -single - 1e-3) & mask)


def test_without_a_clip_range_the_gradient_is_reinforces_at_any_ratio():
    log_probs, old_log_probs, advantages, mask = example()
    total, _, metrics = clipped_surrogate(log_probs, old_log_probs, advantages, mask, None)
    ratio = np.exp(log_probs.astype(np.float64) - old_log_probs)
    np.testing.assert_allclose(total, -(ratio * advantages)[mask].sum(), rtol=1e-5)
    assert metrics["clip_fraction"][0] == 0
