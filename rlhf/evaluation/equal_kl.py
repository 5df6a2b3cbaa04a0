"""Policies compared at equal distance from the initial policy: the only fair comparison of methods that pay in KL.

Between two measured points a run's value is taken to be linear in √KL, in which 2204.05862 finds rewards nearly linear.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf.errors import UserError

NORMAL_95 = 1.96
GRID_POINTS = 8


@dataclass(frozen=True)
class Point:
    """A policy: how far it is from the initial one, and what it scores.

    Attributes:
        kl: in nats; an estimate may lie below 0.
        value: mean score.
        error: standard error of the score; None if it was not measured.
    """

    kl: float
    value: float
    error: float | None = None

    @property
    def distance(self) -> float:
        """√KL; 0 where an estimate lies below 0."""
        return math.sqrt(max(self.kl, 0.0))


def value_at(points: Sequence[Point], kl: float) -> Point | None:
    """The value of a run at a KL between its nearest and its farthest point; None outside, where nothing was measured.

    The error of a value between two points is the same mixture of theirs, as if they erred together: points of one run are
    measured on the same prompts.
    """
    points = sorted(points, key=lambda point: point.distance)
    wanted = math.sqrt(max(kl, 0.0))
    if not points or not points[0].distance <= wanted <= points[-1].distance:
        return None
    upper = next(index for index, point in enumerate(points) if point.distance >= wanted)
    if points[upper].distance == wanted:
        return Point(kl, points[upper].value, points[upper].error)
    below, above = points[upper - 1], points[upper]
    share = (wanted - below.distance) / (above.distance - below.distance)
    error = None
    if below.error is not None and above.error is not None:
        error = (1 - share) * below.error + share * above.error
    return Point(kl, (1 - share) * below.value + share * above.value, error)


def shared_grid(runs: Mapping[str, Sequence[Point]]) -> list[float]:
    """KLs, evenly spaced in √KL, from the smallest to the largest that at least two runs reach; none if no two meet."""
    ranges = [
        (min(point.distance for point in points), max(point.distance for point in points))
        for points in runs.values()
        if points
    ]
    meeting = [
        (max(low, other_low), min(high, other_high))
        for number, (low, high) in enumerate(ranges)
        for other_low, other_high in ranges[:number]
    ]
    meeting = [(low, high) for low, high in meeting if high > low]
    if not meeting:
        return []
    low, high = min(low for low, _ in meeting), max(high for _, high in meeting)
    grid = np.linspace(low, high, GRID_POINTS + 1) if low == 0 else np.linspace(low, high, GRID_POINTS)
    return [float(distance**2) for distance in grid if distance > 0]


def compare_at_equal_kl(runs: Mapping[str, Sequence[Point]], grid: Sequence[float]) -> list[dict[str, Any]]:
    """Who is ahead at each KL.

    Args:
        runs: name → points of a run.
        grid: KLs in nats.

    Returns:
        A row a KL that at least two runs reach: "kl", "values" (name → {"value", "error"}), "winner" (the highest), "lead" (over
        the second), and "clear": whether 0 lies outside the 95 % interval of the lead, None where errors are not known. The
        interval takes the errors of two runs for independent, which is too wide where they were measured on the same prompts.

    Raises:
        UserError: a KL of the grid is below 0.
    """
    if any(kl < 0 for kl in grid):
        raise UserError(f"kl is {list(grid)}; distances are not below 0", fix="give positive numbers of nats.")
    rows = []
    for kl in grid:
        reached = {name: point for name, points in runs.items() if (point := value_at(points, kl)) is not None}
        if len(reached) < 2:
            continue
        (winner, best), (_, second) = sorted(reached.items(), key=lambda item: -item[1].value)[:2]
        lead = best.value - second.value
        clear = None
        if best.error is not None and second.error is not None:
            clear = lead > NORMAL_95 * math.hypot(best.error, second.error)
        rows.append(
            {
                "kl": kl,
                "values": {name: {"value": point.value, "error": point.error} for name, point in reached.items()},
                "winner": winner,
                "lead": lead,
                "clear": clear,
            }
        )
    return rows
