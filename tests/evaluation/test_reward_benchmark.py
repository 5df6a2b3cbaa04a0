"""Figures of a reward model on comparisons, against loops over the pairs."""

import math

import numpy as np
import pytest

from rlhf.data.records import Comparison, Message
from rlhf.evaluation.reward_benchmark import benchmark, disagreement, judge_comparisons

PROMPT = (Message("user", "Well?"),)
SUBSETS = ["alpacaeval-easy", "llmbar-natural", "donotanswer", "math-prm", "hep-go"]


def comparisons(count, subsets=("",), seed=0):
    random = np.random.default_rng(seed)
    return [
        Comparison(
            PROMPT,
            "a" * int(random.integers(1, 40)),
            "b" * int(random.integers(1, 40)),
            metadata={"subset": subsets[number % len(subsets)]} if subsets[0] else {},
        )
        for number in range(count)
    ]


def test_figures_of_one_model():
    pairs = comparisons(40)
    random = np.random.default_rng(1)
    chosen, rejected = random.normal(0.5, 1, 40), random.normal(0, 1, 40)
    result = benchmark(chosen, rejected, pairs, bins=4)
    assert result["accuracy"]["value"] == pytest.approx(np.mean(chosen > rejected)) and result["left_out"] == 0
    order = np.argsort(np.abs(chosen - rejected))
    for row, part in zip(result["accuracy_by_gap"], np.split(order, 4), strict=True):
        gaps = np.abs(chosen - rejected)[part]
        assert row["count"] == 10 and row["value"] == pytest.approx(gaps.mean())
        assert row["accuracy"] == pytest.approx(np.mean((chosen > rejected)[part]))
        assert row["expected"] == pytest.approx(np.mean([1 / (1 + math.exp(-gap)) for gap in gaps]))
    error = sum(0.25 * abs(row["accuracy"] - row["confidence"]) for row in result["reliability"])
    assert len(result["reliability"]) == 4 and result["ece"] == pytest.approx(error)
    lengths = [len(pair.chosen) for pair in pairs] + [len(pair.rejected) for pair in pairs]
    expected = np.corrcoef([*chosen, *rejected], lengths)[0, 1]
    assert result["score_length_correlation"] == pytest.approx(expected)
    expected = np.corrcoef(chosen - rejected, np.subtract(lengths[:40], lengths[40:]))[0, 1]
    assert result["gap_length_correlation"] == pytest.approx(expected)
    # A gap in Elo is one whose win share 1 / (1 + 10^(−Elo/400)) is σ(gap).
    assert 1 / (1 + 10 ** (-result["elo"] / 400)) == pytest.approx(1 / (1 + math.exp(-result["mean_gap"])))
    assert "by_subset" not in result


def test_pairs_that_a_model_cannot_score_are_left_out_and_counted():
    pairs = comparisons(6)
    chosen = np.array([1.0, np.nan, 1, 1, 1, 1])
    rejected = np.array([0.0, 0.0, 2, 0, np.nan, 1])
    result = benchmark(chosen, rejected, pairs)
    assert (result["pairs"], result["left_out"]) == (4, 2)
    assert result["accuracy"]["value"] == pytest.approx((1 + 0 + 1 + 0.5) / 4)


def test_subsets_and_sections_of_reward_bench():
    # Eleven pairs: three of the first subset, two of each other.
    pairs = comparisons(11, SUBSETS)
    right = np.array([number % 2 for number in range(11)], float)
    result = benchmark(right, np.full(11, 0.5), pairs)
    share = {name: np.mean([right[number] for number in range(11) if SUBSETS[number % 5] == name]) for name in SUBSETS}
    assert {name: entry["accuracy"]["value"] for name, entry in result["by_subset"].items()} == pytest.approx(share)
    assert result["by_subset"]["alpacaeval-easy"]["pairs"] == 3
    sections = result["reward_bench"]
    assert sections["chat"] == pytest.approx(share["alpacaeval-easy"])
    assert sections["reasoning"] == pytest.approx((share["math-prm"] + share["hep-go"]) / 2)
    names = ("chat", "chat hard", "safety", "reasoning")
    assert sections["average"] == pytest.approx(np.mean([sections[name] for name in names]))
    partial = benchmark(right, np.full(11, 0.5), comparisons(11, SUBSETS[:2]))
    assert set(partial["reward_bench"]) == {"chat", "chat hard"}


def test_disagreement_of_models_with_different_units():
    zero = np.zeros(5)
    gaps = {"a": np.array([1.0, 1, 1, -1, np.nan]), "b": np.array([100.0, 100, -300, -100, 1]), "c": np.ones(5)}
    result = disagreement({name: (gap, zero) for name, gap in gaps.items()})
    assert result["pairs"] == 4
    assert result["agreement"] == {"a": {"b": 0.75, "c": 0.75}, "b": {"a": 0.75, "c": 0.5}, "c": {"a": 0.75, "b": 0.5}}
    assert result["split_share"] == 0.5 and result["accuracy_where_unanimous"] == 1.0
    assert result["majority"] == 0.75
    scaled = np.array([[1, 1, 1, -1], np.array([1, 1, -3, -1]) / math.sqrt(3), [1, 1, 1, 1]])
    assert result["gap_deviation"] == pytest.approx(np.mean([np.std(column) for column in scaled.T]))
    assert result["mean"] == pytest.approx(np.mean(scaled.sum(axis=0) > 0))


def test_a_judge_sees_each_answer_with_its_own_prompt_and_metadata():
    pairs = comparisons(3, ["x", "y", "z"])
    seen = []

    def judge(prompts, responses):
        seen.extend(
            (prompt.metadata["subset"], response[0]) for prompt, response in zip(prompts, responses, strict=True)
        )
        return np.array([len(response) for response in responses], np.float32)

    chosen, rejected = judge_comparisons(judge, pairs)
    assert seen == [("x", "a"), ("y", "a"), ("z", "a"), ("x", "b"), ("y", "b"), ("z", "b")]
    np.testing.assert_array_equal(chosen, [len(pair.chosen) for pair in pairs])
    np.testing.assert_array_equal(rejected, [len(pair.rejected) for pair in pairs])
