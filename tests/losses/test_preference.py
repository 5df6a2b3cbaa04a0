"""The loss of comparisons, against torch and against its known properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.losses.preference import pairwise_accuracy, pairwise_loss, pairwise_loss_with_ties, safety_loss


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


def test_soft_labels_and_smoothing_agree_with_binary_cross_entropy_in_torch():
    random = np.random.default_rng(1)
    chosen, rejected = random.normal(size=(2, 6)).astype(np.float32)
    preference = np.asarray([1.0, 0.5, 0.7, 0.9, 0.6, 0.2], np.float32)
    weight = np.asarray([1, 2, 0.5, 1, 0, 1], np.float32)
    for smoothing in (0.0, 0.1):
        settings = {"margin": 0.25, "weight": weight, "preference": preference, "smoothing": smoothing}
        value, gradient = jax.value_and_grad(lambda x: pairwise_loss(x, rejected, **settings)[0])(chosen)  # noqa: B023
        scores = torch.tensor(chosen, dtype=torch.float64, requires_grad=True)
        target = (1 - smoothing) * torch.tensor(preference) + smoothing * (1 - torch.tensor(preference))
        expected = torch.nn.functional.binary_cross_entropy_with_logits(
            scores - torch.tensor(rejected) - 0.25, target.double(), weight=torch.tensor(weight), reduction="sum"
        )
        expected.backward()
        np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
        np.testing.assert_allclose(gradient, scores.grad, atol=1e-5)


def test_a_soft_label_is_two_comparisons_with_shared_weight():
    chosen, rejected = jnp.asarray([0.3]), jnp.asarray([-1.1])
    soft, _ = pairwise_loss(chosen, rejected, preference=jnp.asarray([0.8]))
    expected = 0.8 * pairwise_loss(chosen, rejected)[0] + 0.2 * pairwise_loss(rejected, chosen)[0]
    np.testing.assert_allclose(soft, expected, rtol=1e-6)


def test_with_ties_the_three_outcomes_have_probabilities_as_published_that_add_up_to_one():
    """In the form of the paper: worths π = e^score, θ = e^η, P(a) = π_a / (π_a + θ π_b)."""
    random = np.random.default_rng(2)
    chosen, rejected = random.normal(size=(2, 5))
    threshold = 0.7
    first, second, theta = np.exp(chosen), np.exp(rejected), np.exp(threshold)
    wins = first / (first + theta * second), second / (second + theta * first)
    tie = first * second * (theta**2 - 1) / ((first + theta * second) * (second + theta * first))
    np.testing.assert_allclose(sum(wins) + tie, 1.0)
    for row in range(5):
        for preference, expected in ((1.0, wins[0]), (0.0, wins[1]), (0.5, tie)):
            arguments = (jnp.asarray([value[row]], jnp.float32) for value in (chosen, rejected))
            loss, weight = pairwise_loss_with_ties(
                *arguments, threshold=threshold, preference=jnp.asarray([preference])
            )
            np.testing.assert_allclose(np.exp(-loss), expected[row], rtol=1e-5)
            assert weight == 1.0


def test_safety_loss_agrees_with_torch_and_leaves_out_what_is_unknown():
    scores = np.asarray([2.0, -1.0, 0.5, np.nan], np.float32)
    is_safe, weight = np.asarray([1.0, 0.0, 0.0, -1.0], np.float32), np.asarray([1.0, 0.5, 2.0, 1.0], np.float32)
    value, total = safety_loss(scores, is_safe, weight=weight)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(scores[:3]), torch.tensor(is_safe[:3]), weight=torch.tensor(weight[:3]), reduction="sum"
    )
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6)
    assert total == 3.5
    gradient = jax.grad(lambda x: safety_loss(x, is_safe, weight=weight)[0])(scores)
    assert gradient[3] == 0 and np.isfinite(gradient).all()
