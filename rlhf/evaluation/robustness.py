"""Whether a policy pleases only the reward model it was trained on: models of two halves of the comparisons (2204.05862, 4.2).

While the score under the training half rises and the score under the other half follows, the policy learns what both halves hold;
where they part, it learns the model's mistakes. Mistakes that both models share do not show, so that the picture is a lower bound.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from rlhf.errors import UserError
from rlhf.evaluation.metrics import bootstrap_interval


def along_training(
    step: Int[np.ndarray, " responses"],
    kl: Float[np.ndarray, " responses"],
    trained_on: Float[np.ndarray, " responses"],
    test: Float[np.ndarray, " responses"],
    *,
    bins: int,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Both scores in stretches of training with about equally many iterations each.

    Args:
        step: iteration in which each response was sampled.
        kl: of each response to the initial policy, in nats.
        trained_on: its score under the model that the policy was trained on.
        test: its score under the other one.
        bins: number of stretches; never more than iterations.
        seed: of the bootstrap.

    Returns:
        A row a stretch: "first_step", "last_step", "responses", "kl" (mean), and with intervals "trained_on", "test" and "gap" (the
        first minus the second).

    Raises:
        UserError: no responses.
    """
    steps = np.unique(step)
    if len(steps) == 0:
        raise UserError("robustness: there are no responses", fix="train with sampled_rows above 0.")
    rows = []
    for part in np.array_split(steps, min(bins, len(steps))):
        inside = (step >= part[0]) & (step <= part[-1])
        rows.append({"first_step": int(part[0]), "last_step": int(part[-1])} | _row(inside, kl, trained_on, test, seed))
    return rows


def along_score(
    kl: Float[np.ndarray, " responses"],
    trained_on: Float[np.ndarray, " responses"],
    test: Float[np.ndarray, " responses"],
    *,
    bins: int,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Both scores by what the model that was trained on says, in bins of equally many responses; columns as in `along_training`.

    A gap that opens here is in part regression to the mean, since responses are sorted by one of the two scores; hold it against
    the same bins of the initial policy.
    """
    order = np.argsort(trained_on, kind="stable")
    return [_row(part, kl, trained_on, test, seed) for part in np.array_split(order, min(bins, len(order)))]


def first_departure(rows: Sequence[dict[str, Any]]) -> int | None:
    """First step of the first stretch whose gap lies, interval and all, above that of the first stretch; None if none does."""
    for row in rows[1:]:
        if row["gap"]["low"] > rows[0]["gap"]["high"]:
            return row["first_step"]
    return None


def _row(inside: Shaped[np.ndarray, " selected"], kl, trained_on, test, seed: int) -> dict[str, Any]:
    columns = {"trained_on": trained_on[inside], "test": test[inside], "gap": (trained_on - test)[inside]}
    return {
        "responses": len(columns["gap"]),
        "kl": float(np.mean(kl[inside])),
        **{name: bootstrap_interval(values, seed=seed) for name, values in columns.items()},
    }
