"""Two scores along training, and where they part."""

import numpy as np
import pytest

from rlhf.errors import UserError
from rlhf.evaluation.robustness import along_score, along_training, first_departure

RANDOM = np.random.default_rng(0)
STEP = np.repeat(np.arange(1, 13), 50)
KL = STEP / 2 + RANDOM.normal(scale=0.1, size=len(STEP))
TEST = np.minimum(STEP, 6) + RANDOM.normal(scale=0.2, size=len(STEP))
TRAINED_ON = STEP + RANDOM.normal(scale=0.2, size=len(STEP))


def test_stretches_hold_the_means_of_their_iterations_and_show_where_the_scores_part():
    rows = along_training(STEP, KL, TRAINED_ON, TEST, bins=4)
    assert [(row["first_step"], row["last_step"]) for row in rows] == [(1, 3), (4, 6), (7, 9), (10, 12)]
    for row in rows:
        inside = np.isin(STEP, range(row["first_step"], row["last_step"] + 1))
        assert row["responses"] == 150 and row["kl"] == pytest.approx(KL[inside].mean())
        assert row["gap"]["value"] == pytest.approx(np.mean(TRAINED_ON[inside] - TEST[inside]))
        assert row["gap"]["value"] == pytest.approx(row["trained_on"]["value"] - row["test"]["value"])
        assert row["gap"]["low"] < row["gap"]["value"] < row["gap"]["high"]
    assert first_departure(rows) == 7
    assert first_departure(along_training(STEP, KL, TEST, TEST + 1, bins=4)) is None
    assert len(along_training(STEP, KL, TRAINED_ON, TEST, bins=100)) == 12


def test_bins_of_the_score_are_ordered_by_it():
    rows = along_score(KL, TRAINED_ON, TEST, bins=5)
    values = [row["trained_on"]["value"] for row in rows]
    assert values == sorted(values) and sum(row["responses"] for row in rows) == len(STEP)
    assert rows[-1]["gap"]["value"] > 3 > rows[0]["gap"]["value"]


def test_no_responses_are_refused():
    with pytest.raises(UserError, match="no responses"):
        along_training(*[np.array([])] * 4, bins=2)
