"""What a reward model is worth on held-out comparisons: accuracy, calibration, and whether it counts words instead."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from transformers import PreTrainedTokenizerBase

from rlhf.data.encoding import comparison_encoder
from rlhf.data.records import Comparison
from rlhf.evaluation.metrics import (
    accuracy_by_bins,
    bootstrap_interval,
    expected_calibration_error,
    pair_correctness,
    reliability_table,
)
from rlhf.models.heads import SequenceScorer
from rlhf.rewards.text import score_token_sequences


def score_comparisons(
    scorer: SequenceScorer, tokenizer: PreTrainedTokenizerBase, comparisons: Sequence[Comparison], batch_size: int
) -> tuple[Float[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]:
    """Scores of the chosen and of the rejected answers."""
    encode = comparison_encoder(tokenizer)
    pairs = [encode(comparison, index) for index, comparison in enumerate(comparisons)]
    sequences = [np.concatenate([pair.prompt, pair.chosen]) for pair in pairs]
    sequences += [np.concatenate([pair.prompt, pair.rejected]) for pair in pairs]
    scores = score_token_sequences(scorer, sequences, batch_size)
    return scores[: len(comparisons)], scores[len(comparisons) :]


def evaluate_comparisons(
    chosen: Float[np.ndarray, " pairs"],
    rejected: Float[np.ndarray, " pairs"],
    comparisons: Sequence[Comparison],
    seed: int,
) -> dict[str, Any]:
    """Accuracy with its interval, calibration, and accuracy by the answers' difference in length.

    A model's confidence in its own choice is σ(|score difference|); calibrated, it is right that often (2204.05862, section 3.3).

    Args:
        chosen: scores of the preferred answers.
        rejected: scores of the others.
        comparisons: the pairs. Where their metadata carries "preference_probability", the chance of the label that was
            given, two figures are added: the accuracy to expect on fresh labels of the same pairs, free of the luck of these, and
            the best that any model can expect.
        seed: of the bootstrap.
    """
    correct = pair_correctness(chosen, rejected)
    confidence = 1.0 / (1.0 + np.exp(-np.abs(chosen - rejected)))
    length_difference = np.array([len(pair.chosen) - len(pair.rejected) for pair in comparisons])
    result = {
        "pairs": len(comparisons),
        "accuracy": bootstrap_interval(correct, seed=seed),
        "ece": expected_calibration_error(confidence, correct),
        "reliability": reliability_table(confidence, correct),
        "accuracy_by_length_difference": accuracy_by_bins(length_difference, correct),
    }
    chances = known_probabilities(comparisons)
    if chances is None:
        return result
    agreement = correct * chances + (1.0 - correct) * (1.0 - chances)
    return {
        **result,
        "expected_accuracy": bootstrap_interval(agreement, seed=seed),
        "accuracy_limit": float(np.mean(np.maximum(chances, 1.0 - chances))),
    }


def known_probabilities(comparisons: Sequence[Comparison]) -> Float[np.ndarray, " pairs"] | None:
    """The chance with which each label was given, from the metadata; None when they are unknown."""
    probabilities = [pair.metadata.get("preference_probability") for pair in comparisons]
    return None if None in probabilities else np.asarray(probabilities, float)
