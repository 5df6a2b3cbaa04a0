"""The loss of comparisons, against torch and against its known properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.losses import pairwise_accuracy, pairwise_loss


@pytest.mark.parametrize("centering", [0.0, 0.01])
def test_value_and_gradient_agree_with_torch(centering):
    random = np.random.default_rng(0)
    chosen, rejected = random.normal(size=(2, 6)).astype(np.float32)
    margin = np.asarray([1, 2 / 3, 1 / 3, 0, 3, 2], np.float32)
    weight = np.asarray([1, 1 / 3, 1 / 6, 0, 2, 1], np.float32)

    def loss(chosen, rejected):
        return pairwise_loss(chosen, rejected, margin=margin, centering=centering, weight=weight)

    (value, total_weight), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(chosen, rejected)
    torch_chosen, torch_rejected = (
        torch.tensor(scores, dtype=torch.float64, requires_grad=True) for scores in (chosen, rejected)
    )
    per_pair = -torch.nn.functional.logsigmoid(torch_chosen - torch_rejected - torch.as_tensor(margin))
    per_pair = per_pair + centering * (torch_chosen + torch_rejected) ** 2
    expected = (torch.as_tensor(weight) * per_pair).sum()
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), atol=1e-5)
    np.testing.assert_allclose(total_weight, weight.sum(), atol=1e-6)
    np.testing.assert_allclose(gradients[0], torch_chosen.grad, atol=1e-5)
    np.testing.assert_allclose(gradients[1], torch_rejected.grad, atol=1e-5)


def test_equal_scores_cost_log_two_and_large_differences_stay_finite():
    assert pairwise_loss(jnp.zeros(4), jnp.zeros(4)) == (pytest.approx(4 * np.log(2), rel=1e-6), 4.0)
    loss, _ = pairwise_loss(jnp.asarray([-1e4]), jnp.asarray([1e4]))
    assert loss == 2e4


@settings(max_examples=15, deadline=None)
@given(shift=st.floats(-50, 50), filler=st.sampled_from([0, 3]))
def test_a_common_constant_and_filler_rows_change_nothing(shift, filler):
    chosen, rejected = jnp.asarray([0.5, -1.0]), jnp.asarray([0.25, 2.0])
    expected, expected_weight = pairwise_loss(chosen, rejected)
    garbage = jnp.full(filler, jnp.nan)
    weight = jnp.asarray([1.0, 1.0] + [0.0] * filler)

    def padded_loss(chosen):
        scores = jnp.concatenate([chosen + shift, garbage]), jnp.concatenate([rejected + shift, garbage])
        return pairwise_loss(*scores, margin=jnp.concatenate([jnp.zeros(2), garbage]), weight=weight)

    (loss, total_weight), gradient = jax.value_and_grad(padded_loss, has_aux=True)(chosen)
    np.testing.assert_allclose(loss, expected, atol=1e-4)
    assert total_weight == expected_weight
    np.testing.assert_allclose(gradient, jax.grad(lambda x: pairwise_loss(x, rejected)[0])(chosen), atol=1e-4)


def test_pairs_of_a_ranking_weigh_as_one_comparison_together():
    scores = np.asarray([2.0, 1.0, 0.5, -1.0], np.float32)
    first, second = np.triu_indices(4, k=1)
    pairs = jnp.full(6, 2 / (4 * 3))
    loss, weight = pairwise_loss(scores[first], scores[second], weight=pairs)
    expected = np.mean(np.log1p(np.exp(-(scores[first] - scores[second]).astype(np.float64))))
    np.testing.assert_allclose(loss, expected, atol=1e-6)
    np.testing.assert_allclose(weight, 1.0, atol=1e-6)


def test_accuracy_counts_ties_one_half_and_leaves_filler_out():
    chosen = jnp.asarray([1.0, 0.0, 3.0, jnp.nan])
    rejected = jnp.asarray([0.0, 1.0, 3.0, 0.0])
    correct, weight = pairwise_accuracy(chosen, rejected, weight=jnp.asarray([1.0, 1.0, 2.0, 0.0]))
    assert (correct, weight) == (2.0, 4.0)
