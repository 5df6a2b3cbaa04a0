"""Two scores into one: the gate by the paper's own steps in float64, its edges, and padding rows."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.errors import UserError
from rlhf.rewards.combine import CombineConfig, combine_scores


def paper_gate(helpfulness, safety, is_safety_prompt, threshold=0.15):
    """σ, gate, clamp, logit, whiten, one step after the other (2307.09288, section 3.2.4)."""
    helpful, safe = (1 / (1 + np.exp(-np.asarray(scores, np.float64))) for scores in (helpfulness, safety))
    chosen = np.clip(np.where(is_safety_prompt | (safe < threshold), safe, helpful), 1e-4, 1 - 1e-4)
    return np.log(chosen) - np.log1p(-chosen)


def example(seed=0, size=40):
    random = np.random.default_rng(seed)
    helpfulness, safety = random.normal(scale=3, size=(2, size)).astype(np.float32)
    return helpfulness, safety, random.random(size) < 0.3


@pytest.mark.parametrize("whiten", [True, False])
def test_gate_follows_the_paper_step_by_step(whiten):
    scores = example()
    combined, metrics = jax.jit(combine_scores, static_argnums=0)(CombineConfig(whiten=whiten), *scores)
    expected = paper_gate(*scores)
    assert metrics["combined_score"] == (pytest.approx(expected.sum(), abs=1e-4), 40)
    by_safety = scores[2] | (1 / (1 + np.exp(-scores[1])) < 0.15)
    assert 0 < by_safety.sum() < 40 and metrics["safety_share"] == (by_safety.sum(), 40)
    if whiten:
        expected = (expected - expected.mean()) / expected.std()
    np.testing.assert_allclose(combined, expected, atol=1e-5)


def gate_one(helpfulness, safety, tagged):
    arrays = np.asarray([helpfulness], np.float32), np.asarray([safety], np.float32), np.asarray([tagged])
    return float(combine_scores(CombineConfig(whiten=False), *arrays)[0][0])


def test_an_unsafe_response_cannot_buy_itself_off_with_helpfulness():
    threshold = np.log(0.15 / 0.85)
    assert gate_one(9.0, threshold - 0.01, False) == pytest.approx(threshold - 0.01)
    assert gate_one(5.0, threshold + 0.01, False) == 5.0
    assert gate_one(5.0, 1.0, True) == 1.0


def test_scores_that_saturate_a_probability_stay_finite_and_ordered():
    assert gate_one(1e4, 5.0, False) == pytest.approx(np.log(0.9999 / 0.0001))
    assert gate_one(1e4, -1e4, False) == pytest.approx(-np.log(0.9999 / 0.0001))
    assert gate_one(9.0, 5.0, False) == 9.0


def test_weighted_and_minimum():
    helpfulness, safety, tagged = example()
    for config, expected in (
        (
            CombineConfig("weighted", helpfulness_weight=0.3, safety_weight=2.0, whiten=False),
            0.3 * helpfulness + 2 * safety,
        ),
        (CombineConfig("weighted", safety_weight=0.0, whiten=False), helpfulness),
        (CombineConfig("weighted", helpfulness_weight=0.0, whiten=False), safety),
        (CombineConfig("minimum", whiten=False), np.minimum(helpfulness, safety)),
    ):
        np.testing.assert_allclose(combine_scores(config, helpfulness, safety, tagged)[0], expected, atol=1e-6)
    _, metrics = combine_scores(CombineConfig("minimum"), helpfulness, safety, tagged)
    assert metrics["safety_share"][0] == (safety < helpfulness).sum()


def test_a_weight_of_zero_leaves_out_a_score_that_is_not_there():
    helpfulness, safety, tagged = example()
    config = CombineConfig("weighted", safety_weight=0.0, whiten=False)
    np.testing.assert_array_equal(combine_scores(config, helpfulness, safety * np.nan, tagged)[0], helpfulness)


@pytest.mark.parametrize("kind", ["gate", "weighted", "minimum"])
@pytest.mark.parametrize("whiten", [True, False])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), padding=st.sampled_from([0, 3]), garbage=st.sampled_from([np.nan, np.inf, 1e30]))
def test_padding_rows_enter_neither_scores_nor_metrics(kind, whiten, seed, padding, garbage):
    helpfulness, safety, tagged = example(seed, 6)
    config = CombineConfig(kind, whiten=whiten)
    expected, expected_metrics = combine_scores(config, helpfulness, safety, tagged)
    rows = np.full(padding, garbage, np.float32)
    combined, metrics = combine_scores(
        config,
        np.append(helpfulness, rows),
        np.append(safety, rows),
        np.append(tagged, rows > 0),
        np.append(np.ones(6, bool), np.zeros(padding, bool)),
    )
    np.testing.assert_allclose(combined, np.append(expected, np.zeros(padding)), atol=1e-5)
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"kind": "gated"}, {"threshold": 15.0}])
def test_impossible_settings_are_refused_by_name(wrong):
    with pytest.raises(UserError, match=f"combine.{next(iter(wrong))}"):
        CombineConfig(**wrong)
