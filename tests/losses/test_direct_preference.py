"""DPO, cDPO, IPO and KTO against torch in float64, values and gradients."""

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rlhf.losses.direct_preference import (
    direct_preference_loss,
    identity_preference_loss,
    prospect_loss,
    prospect_reference_point,
)

RANDOM = np.random.default_rng(0)
FIRST, SECOND = RANDOM.normal(scale=4, size=(2, 9)).astype(np.float32)
WEIGHT = np.array([1, 1, 0.5, 0.25, 1, 0, 1, 1, 1], np.float32)
DESIRABLE = RANDOM.random(9) < 0.5
BETA = 0.3


def dpo(chosen, rejected):
    return -F.logsigmoid(BETA * (chosen - rejected))


def conservative(chosen, rejected):
    return 0.8 * -F.logsigmoid(BETA * (chosen - rejected)) + 0.2 * -F.logsigmoid(-BETA * (chosen - rejected))


def ipo(chosen, rejected):
    return (chosen - rejected - 1 / (2 * BETA)) ** 2


def kto(answer, mismatched):
    z0 = torch.clamp((torch.tensor(WEIGHT) * mismatched.detach()).sum() / WEIGHT.sum(), min=0)
    good = 1.5 * (1 - torch.sigmoid(BETA * (answer - z0)))
    bad = 0.7 * (1 - torch.sigmoid(BETA * (z0 - answer)))
    return torch.where(torch.tensor(DESIRABLE), good, bad)


def prospect(answer, mismatched, weight, *, beta):
    point = prospect_reference_point(mismatched, weight)
    return prospect_loss(answer, point, DESIRABLE, weight, beta=beta, desirable_weight=1.5, undesirable_weight=0.7)


CASES = {
    "dpo": (direct_preference_loss, {}, dpo),
    "conservative": (direct_preference_loss, {"label_smoothing": 0.2}, conservative),
    "ipo": (identity_preference_loss, {}, ipo),
    "kto": (prospect, {}, kto),
}


@pytest.mark.parametrize("shift", [0.0, 3.0])
@pytest.mark.parametrize("ours, options, reference", CASES.values(), ids=CASES)
def test_value_and_gradient_agree_with_torch(ours, options, reference, shift):
    second = SECOND + shift  # of either sign, as KTO's reference point is cut off at 0
    (total, weight), gradients = jax.value_and_grad(
        lambda *ratios: (lambda pair: (pair[0], pair[1]))(ours(*ratios, WEIGHT, beta=BETA, **options)),
        argnums=(0, 1),
        has_aux=True,
    )(FIRST, second)
    leaves = [torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in (FIRST, second)]
    expected = (torch.tensor(WEIGHT) * reference(*leaves)).sum()
    expected.backward()
    np.testing.assert_allclose(total, expected.item(), rtol=1e-5)
    assert weight == WEIGHT.sum()
    for gradient, leaf in zip(gradients, leaves, strict=True):
        grad = np.zeros(9) if leaf.grad is None else leaf.grad
        np.testing.assert_allclose(gradient, grad, atol=1e-5)


def test_rows_of_no_weight_count_for_nothing_whatever_they_hold():
    spoilt = np.where(WEIGHT == 0, np.nan, FIRST)
    for ours, options, _ in CASES.values():
        clean, found = (ours(first, SECOND, WEIGHT, beta=BETA, **options)[0] for first in (FIRST, spoilt))
        assert clean == found
