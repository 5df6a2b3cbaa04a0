"""Numbers with their uncertainty: bootstrap intervals, accuracy on pairs, calibration.

Confidence and correctness come as arrays over examples; on comparisons the confidence is σ(|score difference|) and
correctness is that of `pair_correctness`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from rlhf.errors import UserError

MOST_DRAWN_AT_ONCE = 1 << 22


def bootstrap_interval(
    values: Shaped[np.ndarray, " examples"], *, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> dict[str, float]:
    """Mean with a percentile bootstrap interval.

    Examples must be independent: several responses to one prompt are one example, given as their mean.

    Args:
        values: one number an example; truth values count as 0 and 1.
        seed: of the resampling; the same seed gives the same interval.
        resamples: number of resampled means.
        level: probability that the interval is to have.

    Returns:
        "value" (mean), "low" and "high".

    Raises:
        UserError: no values, or values that are not finite.
    """
    values = np.asarray(values, np.float64)
    if values.size == 0:
        raise UserError("bootstrap_interval: there are no values", fix="evaluate on at least one example.")
    if not np.isfinite(values).all():
        raise UserError("bootstrap_interval: some values are not finite", fix="find the examples that gave them.")
    random = np.random.default_rng(seed)
    rows = max(1, MOST_DRAWN_AT_ONCE // len(values))
    means = [
        values[random.integers(len(values), size=(min(rows, resamples - start), len(values)))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}


def pair_correctness(
    chosen: Float[np.ndarray, " pairs"], rejected: Float[np.ndarray, " pairs"]
) -> Float[np.ndarray, " pairs"]:
    """1 where the preferred answer scores higher, ½ where both score the same, 0 otherwise.

    Args:
        chosen: scores of the preferred answers.
        rejected: scores of the others.
    """
    chosen, rejected = np.asarray(chosen), np.asarray(rejected)
    return np.where(chosen == rejected, 0.5, (chosen > rejected).astype(np.float64))


def pair_accuracy(chosen: Float[np.ndarray, " pairs"], rejected: Float[np.ndarray, " pairs"]) -> float:
    """Share of pairs that the scores order as the data does, ties counting one half.

    Args:
        chosen: scores of the preferred answers.
        rejected: scores of the others.
    """
    return float(pair_correctness(chosen, rejected).mean())


ELO_PER_UNIT = 400 / np.log(10)
"""Elo points that a score difference of 1 is worth, about 174: σ(Δ) = 1 / (1 + 10^(−Δ·174/400)) (2204.05862, section 2)."""


def correlation(first: Shaped[np.ndarray, " examples"], second: Shaped[np.ndarray, " examples"]) -> float | None:
    """Pearson's correlation; None where one of both is constant."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def expected_calibration_error(
    confidence: Float[np.ndarray, " examples"], correct: Shaped[np.ndarray, " examples"], *, bins: int = 10
) -> float:
    """Σ (n_b/n) · |accuracy_b − confidence_b| over bins of equally many examples (as in 2211.09110).

    Needs some hundreds of examples: with few in a bin, chance alone gives a positive error.

    Args:
        confidence: probability of being right, as the model has it.
        correct: 1 right, 0 wrong, ½ tied.
        bins: number of bins; never more than examples.
    """
    rows = reliability_table(confidence, correct, bins=bins)
    total = sum(row["count"] for row in rows)
    return float(sum(row["count"] / total * abs(row["accuracy"] - row["confidence"]) for row in rows))


def reliability_table(
    confidence: Float[np.ndarray, " examples"], correct: Shaped[np.ndarray, " examples"], *, bins: int = 10
) -> list[dict[str, Any]]:
    """Accuracy against confidence in bins of equally many examples, from least to most confident.

    Args:
        confidence: probability of being right, as the model has it.
        correct: 1 right, 0 wrong, ½ tied.
        bins: number of bins; never more than examples.

    Returns:
        A row a bin: "low" and "high" (range of confidence), "confidence" and "accuracy" (means), "count".
    """
    rows = accuracy_by_bins(confidence, correct, bins=bins)
    return [{"confidence" if key == "value" else key: entry for key, entry in row.items()} for row in rows]


def accuracy_by_bins(
    values: Shaped[np.ndarray, " examples"],
    correct: Shaped[np.ndarray, " examples"],
    *,
    bins: int | Sequence[float] = 10,
) -> list[dict[str, Any]]:
    """Accuracy as a function of some property of the examples: a length, a score, a gap.

    Args:
        values: the property.
        correct: 1 right, 0 wrong, ½ tied.
        bins: a number of bins with equally many examples each, or the edges of the bins, ascending; an example on an
            inner edge belongs to the bin above, the last edge to the last bin, and what lies outside is left out.

    Returns:
        A row a bin that has examples: "low" and "high" (the edges, or else the range of values), "value" and "accuracy"
        (means), "count".

    Raises:
        UserError: no examples, unequal lengths, or edges that do not ascend.
    """
    values, correct = np.asarray(values, np.float64), np.asarray(correct, np.float64)
    if values.shape != correct.shape or values.size == 0:
        raise UserError(
            f"accuracy_by_bins: shapes {values.shape} and {correct.shape}",
            fix="give as many values as outcomes, at least one.",
        )
    if isinstance(bins, int):
        members = [(part, values[part].min(), values[part].max()) for part in _equal_parts(values, bins)]
        correct = _mean_over_ties(values, correct)
    else:
        members = _between_edges(values, np.asarray(bins, np.float64))
    return [
        {
            "low": float(low),
            "high": float(high),
            "value": float(values[part].mean()),
            "accuracy": float(correct[part].mean()),
            "count": len(part),
        }
        for part, low, high in members
        if len(part)
    ]


def accuracy_by_gap(
    chosen: Float[np.ndarray, " pairs"], rejected: Float[np.ndarray, " pairs"], *, bins: int | Sequence[float] = 10
) -> list[dict[str, Any]]:
    """How often the scores are right, by how far apart they are; calibrated ones follow σ(gap) (2204.05862).

    Args:
        chosen: scores of the preferred answers.
        rejected: scores of the others.
        bins: as in `accuracy_by_bins`.

    Returns:
        Its rows, "value" being the mean gap, and "expected": mean of σ(gap).
    """
    gap = np.abs(np.asarray(chosen, np.float64) - np.asarray(rejected, np.float64))
    correct = pair_correctness(chosen, rejected)
    expected = accuracy_by_bins(gap, 1.0 / (1.0 + np.exp(-gap)), bins=bins)
    return [
        {**row, "expected": expected_row["accuracy"]}
        for row, expected_row in zip(accuracy_by_bins(gap, correct, bins=bins), expected, strict=True)
    ]


def _equal_parts(values: Float[np.ndarray, " examples"], bins: int) -> list[Int[np.ndarray, " members"]]:
    return np.array_split(np.argsort(values, kind="stable"), min(bins, len(values)))


def _mean_over_ties(
    values: Float[np.ndarray, " examples"], correct: Float[np.ndarray, " examples"]
) -> Float[np.ndarray, " examples"]:
    """Gives examples of equal value their common accuracy, so that bins do not depend on the order of examples."""
    _, group = np.unique(values, return_inverse=True)
    return (np.bincount(group, weights=correct) / np.bincount(group))[group]


def _between_edges(
    values: Float[np.ndarray, " examples"], edges: Float[np.ndarray, " edges"]
) -> list[tuple[Int[np.ndarray, " members"], float, float]]:
    if len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise UserError(f"accuracy_by_bins: edges {edges.tolist()}", fix="give at least two edges, in ascending order.")

    def inside(number: int) -> Bool[np.ndarray, " examples"]:
        below = values <= edges[number + 1] if number == len(edges) - 2 else values < edges[number + 1]
        return (values >= edges[number]) & below

    return [(np.flatnonzero(inside(number)), edges[number], edges[number + 1]) for number in range(len(edges) - 1)]
