"""How far a reward model can be trusted on comparisons: everything about one model on one data set, and about several together."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from rlhf.data.records import Comparison, Prompt
from rlhf.evaluation.metrics import (
    ELO_PER_UNIT,
    accuracy_by_bins,
    accuracy_by_gap,
    bootstrap_interval,
    correlation,
    expected_calibration_error,
    pair_correctness,
    reliability_table,
)
from rlhf.evaluation.reward_model import evaluate_comparisons
from rlhf.rewards.judge import Judge

# Subsets of RewardBench by section (2403.13787, table 1). A section counts its pairs alike, but reasoning its two halves alike.
REWARD_BENCH = {
    "chat": [["alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"]],
    "chat hard": [
        [
            "mt-bench-hard",
            "llmbar-natural",
            "llmbar-adver-neighbor",
            "llmbar-adver-GPTInst",
            "llmbar-adver-GPTOut",
            "llmbar-adver-manual",
        ]
    ],
    "safety": [
        ["refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond", "donotanswer"]
    ],
    "reasoning": [["math-prm"], ["hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"]],
}

PairScores = tuple[Float[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]


def judge_comparisons(judge: Judge, comparisons: Sequence[Comparison]) -> PairScores:
    """Scores of the chosen and of the rejected answers; NaN for an answer that is too long for the model."""
    prompts = [Prompt(pair.prompt, origin=pair.origin, metadata=pair.metadata) for pair in comparisons]
    answers = [pair.chosen for pair in comparisons] + [pair.rejected for pair in comparisons]
    scores = np.asarray(judge([*prompts, *prompts], answers), np.float64)
    return scores[: len(prompts)], scores[len(prompts) :]


def benchmark(
    chosen: Float[np.ndarray, " pairs"],
    rejected: Float[np.ndarray, " pairs"],
    comparisons: Sequence[Comparison],
    *,
    subset_column: str = "subset",
    bins: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything about one model on one data set.

    Args:
        chosen: scores of the preferred answers; a pair with a NaN is left out and counted.
        rejected: scores of the others.
        comparisons: the pairs.
        subset_column: metadata that divides the pairs; subsets are left out where no pair has it.
        bins: for calibration, accuracy by gap and by length; each of equally many pairs.
        seed: of the bootstrap.

    Returns:
        What `evaluate_comparisons` gives ("accuracy", "ece", …, calibration with `bins`), and "left_out"; "by_subset"; for
        RewardBench's subsets "reward_bench" (a number a section, and "average"); "accuracy_by_gap" with the expected 1/(1 + e^−Δ)
        (2204.05862, section 3.3); "score_length_correlation" over all answers, in characters, and "gap_length_correlation"
        over pairs; "mean_gap", also as "elo".

    Raises:
        UserError: no pair is left.
    """
    scored = np.isfinite(chosen) & np.isfinite(rejected)
    chosen, rejected = chosen[scored], rejected[scored]
    pairs = [pair for pair, is_scored in zip(comparisons, scored, strict=True) if is_scored]
    correct, gap = pair_correctness(chosen, rejected), chosen - rejected
    lengths = np.array([[len(pair.chosen), len(pair.rejected)] for pair in pairs]).reshape(-1, 2)
    confidence = 1.0 / (1.0 + np.exp(-np.abs(gap)))
    result = evaluate_comparisons(chosen, rejected, pairs, seed) | {
        "left_out": int((~scored).sum()),
        "ece": expected_calibration_error(confidence, correct, bins=bins),
        "reliability": reliability_table(confidence, correct, bins=bins),
        "accuracy_by_length_difference": accuracy_by_bins(lengths[:, 0] - lengths[:, 1], correct, bins=bins),
        "accuracy_by_gap": accuracy_by_gap(chosen, rejected, bins=bins),
        "score_length_correlation": correlation(np.concatenate([chosen, rejected]), lengths.T.reshape(-1)),
        "gap_length_correlation": correlation(gap, lengths[:, 0] - lengths[:, 1]),
        "mean_gap": float(gap.mean()),
        "elo": float(gap.mean() * ELO_PER_UNIT),
    }
    by_subset = accuracy_by_subset(correct, pairs, subset_column, seed)
    return result | by_subset


def accuracy_by_subset(
    correct: Float[np.ndarray, " pairs"], pairs: Sequence[Comparison], column: str, seed: int
) -> dict[str, Any]:
    """{"by_subset": …} and, with all sections of RewardBench, {"reward_bench": …}; nothing where no pair names a subset."""
    names = np.array([str(pair.metadata.get(column, "")) for pair in pairs])
    if not any(names):
        return {}
    by_subset = {
        name: {"pairs": int((names == name).sum()), "accuracy": bootstrap_interval(correct[names == name], seed=seed)}
        for name in sorted(set(names))
    }
    sections = {}
    for section, parts in REWARD_BENCH.items():
        present = [correct[np.isin(names, part)] for part in parts]
        if all(map(len, present)):
            sections[section] = float(np.mean([part.mean() for part in present]))
    if not sections:
        return {"by_subset": by_subset}
    average = {"average": float(np.mean(list(sections.values())))} if len(sections) == len(REWARD_BENCH) else {}
    return {"by_subset": by_subset, "reward_bench": sections | average}


def disagreement(scores: Mapping[str, PairScores]) -> dict[str, Any]:
    """How far models differ on the same pairs, and what they are worth together.

    Args:
        scores: model → scores of the chosen and the rejected answers; pairs that some model could not score are left out.

    Returns:
        "agreement": model → model → share of pairs that both order alike; "split_share": of pairs that not all models order
        alike; "gap_deviation": mean over pairs of the standard deviation of the models' gaps, each divided by its own root
        mean square, so that units do not count; and accuracies: "mean" (of such gaps), "majority", and
        "accuracy_where_unanimous", None where they never are.
    """
    gaps = {name: chosen - rejected for name, (chosen, rejected) in scores.items()}
    scored = np.isfinite(np.stack(list(gaps.values()))).all(axis=0)
    gaps = {name: gap[scored] for name, gap in gaps.items()}
    signs = {name: np.sign(gap) for name, gap in gaps.items()}
    agreement: dict[str, dict[str, float]] = {name: {} for name in gaps}
    for first, second in combinations(gaps, 2):
        agreement[first][second] = agreement[second][first] = float(np.mean(signs[first] == signs[second]))
    scaled = np.stack([gap / (np.sqrt(np.mean(np.square(gap))) or 1.0) for gap in gaps.values()])
    votes = np.stack(list(signs.values()))
    unanimous = (votes == votes[0]).all(axis=0)
    zero = np.zeros(votes.shape[1])
    return {
        "pairs": int(scored.sum()),
        "agreement": agreement,
        "split_share": float(1 - unanimous.mean()),
        "gap_deviation": float(scaled.std(axis=0).mean()),
        "mean": float(pair_correctness(scaled.mean(axis=0), zero).mean()),
        "majority": float(pair_correctness(votes.sum(axis=0), zero).mean()),
        "accuracy_where_unanimous": float(pair_correctness(votes[0], zero)[unanimous].mean())
        if unanimous.any()
        else None,
    }
