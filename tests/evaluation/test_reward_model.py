"""What a reward model is worth, from numbers that can be checked by hand."""

import numpy as np
import pytest
from flax import nnx

from rlhf.data.records import Comparison, Message
from rlhf.data.templates import apply_template
from rlhf.data.tokenizers import train_tokenizer
from rlhf.evaluation.reward_model import evaluate_comparisons, known_probabilities, score_comparisons
from rlhf.models.config import ModelConfig
from rlhf.models.heads import SequenceScorer
from rlhf.models.transformer import Transformer
from rlhf.rewards.text import RewardModel


def compare(chosen: str, rejected: str, **metadata) -> Comparison:
    return Comparison((Message("user", "Well?"),), chosen, rejected, metadata=metadata)


def test_accuracy_calibration_and_limit():
    pairs = [compare("yes", "no", preference_probability=p) for p in (0.9, 0.6, 0.3, 0.5)]
    chosen, rejected = np.array([2.0, 1.0, 0.0, 1.0]), np.array([0.0, 0.5, 1.5, 1.0])
    result = evaluate_comparisons(chosen, rejected, pairs, seed=0)
    assert result["pairs"] == 4
    assert result["accuracy"]["value"] == (1 + 1 + 0 + 0.5) / 4
    assert result["accuracy"]["low"] <= result["accuracy"]["value"] <= result["accuracy"]["high"]
    assert result["accuracy_limit"] == pytest.approx((0.9 + 0.6 + 0.7 + 0.5) / 4)
    assert result["expected_accuracy"]["value"] == pytest.approx((0.9 + 0.6 + 0.7 + 0.5) / 4)
    # Fewer pairs than bins: each pair is a bin of its own.
    confidence = 1 / (1 + np.exp(-np.array([2.0, 0.5, 1.5, 0.0])))
    assert result["ece"] == pytest.approx(np.abs(confidence - [1, 1, 0, 0.5]).mean(), abs=1e-9)


def test_no_limit_without_known_probabilities():
    pairs = [compare("yes", "no"), compare("yes", "no", preference_probability=0.9)]
    assert known_probabilities(pairs) is None
    figures = evaluate_comparisons(np.ones(2), np.zeros(2), pairs, seed=0)
    assert "accuracy_limit" not in figures and "expected_accuracy" not in figures


def test_accuracy_on_fresh_labels_does_not_depend_on_the_labels_drawn():
    """Turning a pair over together with the chance of its label changes nothing but the luck."""
    scores = np.array([2.0, -1.0, 0.5]), np.zeros(3)
    chances = (0.9, 0.6, 0.8)
    drawn = evaluate_comparisons(*scores, [compare("a", "b", preference_probability=p) for p in chances], seed=0)
    turned = [compare("b", "a", preference_probability=1 - p) for p in chances]
    other = evaluate_comparisons(*scores[::-1], turned, seed=0)
    assert drawn["expected_accuracy"]["value"] == pytest.approx((0.9 + 0.4 + 0.8) / 3)
    assert other["expected_accuracy"]["value"] == pytest.approx(drawn["expected_accuracy"]["value"])
    assert other["accuracy"]["value"] != drawn["accuracy"]["value"]


def test_a_model_that_counts_words_is_found_out():
    pairs = [compare("a" * n, "b" * (20 - n)) for n in range(1, 20) if n != 10]
    chosen, rejected = (
        np.array([float(len(getattr(pair, name))) for pair in pairs]) for name in ("chosen", "rejected")
    )
    table = evaluate_comparisons(chosen, rejected, pairs, seed=0)["accuracy_by_length_difference"]
    accuracies = [row["accuracy"] for row in table]
    assert accuracies[0] == 0 and accuracies[-1] == 1


def test_scores_are_of_the_right_answers_in_the_right_order():
    tokenizer = train_tokenizer(["Well?"], 260)
    apply_template(tokenizer, "user_ai")
    architecture = ModelConfig(
        vocab_size=260, width=16, layers=1, heads=2, mlp_width=16, context=64, initializer_std=0.4
    )
    scorer = SequenceScorer(Transformer(architecture, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
    pairs = [compare("yes", "no, not at all"), compare("it may be so", "no"), compare("of course", "why?")]
    chosen, rejected = score_comparisons(scorer, tokenizer, pairs, batch_size=4)
    model = RewardModel(scorer, tokenizer)
    np.testing.assert_allclose(chosen, model.score(["Well?"] * 3, [pair.chosen for pair in pairs]), atol=1e-5)
    np.testing.assert_allclose(rejected, model.score(["Well?"] * 3, [pair.rejected for pair in pairs]), atol=1e-5)
