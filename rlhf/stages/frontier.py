"""Which method gets more for the same KL: proxy and gold reward of any number of runs against KL, with the forms of 2210.10760.

    rlhf frontier runs/demo runs/other --output=runs/frontier

A run is the output of `rlhf ppo` (every check on held-out prompts is a point), of `rlhf best-of-n` (every n is a point), or of a
pipeline with such stages in it. Written are frontier.json, frontier.md, frontier.png and frontier.svg.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import Any, Literal

import numpy as np

from rlhf.errors import UserError
from rlhf.evaluation.equal_kl import NORMAL_95, Point, compare_at_equal_kl, shared_grid
from rlhf.evaluation.over_optimisation import FrontierFit, fit_frontier
from rlhf.report.frontier_figure import save_figure
from rlhf.report.frontier_page import page, print_tables
from rlhf.report.frontier_runs import Curve, read_curves
from rlhf.stages.folder import begin_writing, close_folder, open_folder, write_json
from rlhf.tracking.console import say

INITIAL_KL = 1e-6
ROUNDING = 1e-6


@dataclass(frozen=True)
class Config:
    """Compare runs at equal KL.

    Attributes:
        runs: folders of runs; on the command line, words before the first option are runs.
        output: folder to write.
        proxy: the measure that was optimised, as the runs call it: "reward", "helpfulness_score" …
        gold: the measure that was meant; runs without it are drawn by proxy alone.
        kl: distances in nats to compare at; null for eight, evenly spaced in √KL, from the least to the most that two runs reach.
        best_of_n_kl: KL of best-of-n: "bound", log n − (n − 1)/n, or "estimate", closer where samples repeat (2401.01879).
        relative: compare gains over each run's own initial policy, as is fair where runs were measured on different prompts.
        fit: fit the forms of 2210.10760 and draw them.
    """

    runs: list[str] = field(default_factory=list)
    output: str = "runs/frontier"
    proxy: str = "reward"
    gold: str = "gold_score"
    kl: list[float] | None = None
    best_of_n_kl: Literal["bound", "estimate"] = "bound"
    relative: bool = False
    fit: bool = True


def run(config: Config) -> dict[str, Any]:
    """Reads the runs, compares and draws; returns what frontier.json holds."""
    if not config.runs:
        raise UserError("runs is empty", fix="name folders of runs, as in `rlhf frontier runs/demo`.")
    folder = open_folder(config)
    titles = {config.proxy: f"proxy ({config.proxy})", config.gold: f"gold ({config.gold})"}
    key = {"bound": "kl", "estimate": "kl_estimate"}[config.best_of_n_kl]
    curves = read_curves(config.runs, list(titles), key)
    warnings = [] if config.relative else [w for measure in titles if (w := differing_starts(curves, measure))]
    if config.relative:
        curves = [relative_to_start(curve) for curve in curves]
    starts = {curve.name: {measure: initial_value(curve, measure) for measure in titles} for curve in curves}
    fits = {
        curve.name: {
            measure: fit_curve(curve, measure, starts[curve.name][measure]) if config.fit else None
            for measure in titles
        }
        for curve in curves
    }
    begin_writing(folder)
    result = {
        "best_of_n_kl": config.best_of_n_kl,
        "relative": config.relative,
        "warnings": warnings,
        "runs": {curve.name: curve_entry(curve, fits[curve.name]) for curve in curves},
        "equal_kl": {measure: compared(curves, measure, config.kl) for measure in titles},
    }
    write_json(folder.path / "frontier.json", result)
    save_figure(folder.path, curves, titles, fits, starts)
    (folder.path / "frontier.md").write_text(page(result, titles), encoding="utf-8")
    print_tables(result, titles)
    for warning in warnings:
        say(warning, style="yellow")
    close_folder(folder, {"runs": list(result["runs"])})
    return result


def initial_point(curve: Curve, measure: str) -> Point | None:
    """The initial policy: the point at KL 0 (the check before training, best of one); None without one."""
    return next((point for point in curve.points[measure] if abs(point.kl) < INITIAL_KL), None)


def initial_value(curve: Curve, measure: str) -> float | None:
    """What the initial policy scores; None where that was not measured."""
    start = initial_point(curve, measure)
    return start and start.value


def relative_to_start(curve: Curve) -> Curve:
    """The same run with its gains over its initial policy in the place of its values.

    Errors stay: start and later points are measured on the same prompts, so that errors of differences are no larger in the main.
    """
    starts = {measure: initial_value(curve, measure) for measure in curve.points}
    if any(start is None for measure, start in starts.items() if curve.points[measure]):
        raise UserError(
            f"relative: the run {curve.name} has no point at KL 0 to count from",
            fix="set relative to false, or measure it from the beginning (evaluate_every, n with 1).",
        )
    points = {
        measure: [replace(point, value=point.value - starts[measure]) for point in points]
        for measure, points in curve.points.items()
    }
    return replace(curve, points=points)


def differing_starts(curves: list[Curve], measure: str) -> str | None:
    """What to say where the initial policies of two runs score differently beyond noise; None where they do not."""
    starts = {curve.name: start for curve in curves if (start := initial_point(curve, measure)) is not None}
    for (name, start), (other, other_start) in combinations(starts.items(), 2):
        noise = NORMAL_95 * math.hypot(start.error or 0.0, other_start.error or 0.0)
        if abs(start.value - other_start.value) > noise + ROUNDING:
            return (
                f"the initial policies of {name} and {other} differ in {measure} ({start.value:.3f} and {other_start.value:.3f}):"
                " they are different policies or were measured on different prompts. Measure them on the same, or set relative=true"
                " to compare gains."
            )
    return None


def fit_curve(curve: Curve, measure: str, start: float | None) -> FrontierFit | None:
    """The form of the run's kind, fitted to its gain over the initial policy; weighted where every point has an error."""
    points = curve.points[measure]
    if start is None:
        return None
    errors = [point.error for point in points]
    known = None if any(not error for error in errors) else np.array(errors)
    return fit_frontier(
        curve.form, np.array([point.kl for point in points]), np.array([point.value - start for point in points]), known
    )


def compared(curves: list[Curve], measure: str, grid: list[float] | None) -> list[dict[str, Any]]:
    """Who is ahead by this measure at each KL of the grid."""
    points = {curve.name: curve.points[measure] for curve in curves if curve.points[measure]}
    return compare_at_equal_kl(points, shared_grid(points) if grid is None else grid)


def curve_entry(curve: Curve, fits: Mapping[str, FrontierFit | None]) -> dict[str, Any]:
    """A run for frontier.json."""
    return {
        "form": curve.form,
        "points": {measure: [asdict(point) for point in points] for measure, points in curve.points.items()},
        "fits": {measure: fit and fit.as_dict() for measure, fit in fits.items()},
    }
