"""One picture of any number of runs: proxy and gold reward against KL and against √KL, with intervals and fitted curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf.evaluation.equal_kl import NORMAL_95, Point
from rlhf.evaluation.over_optimisation import FrontierFit
from rlhf.report.frontier_runs import Curve

# Colours that stay apart for most colour-blind readers (Okabe and Ito); with more runs, the marker changes too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "os^Dv*"


def save_figure(
    folder: Path,
    curves: Sequence[Curve],
    measures: Mapping[str, str],
    fits: Mapping[str, Mapping[str, FrontierFit | None]],
    starts: Mapping[str, Mapping[str, float | None]],
) -> None:
    """Writes frontier.png and frontier.svg: a row a measure, KL on the left and √KL on the right.

    Args:
        folder: where to.
        curves: the runs.
        measures: measure → what to call it; those that no run has are not drawn.
        fits: run → measure → fitted form, drawn as a dotted line as far as the points reach.
        starts: run → measure → value of the initial policy, which the fit counts from.
    """
    drawn = {m: title for m, title in measures.items() if any(curve.points[m] for curve in curves)}
    figure = Figure(figsize=(11, 3.8 * len(drawn)), layout="constrained", dpi=130)
    panels = figure.subplots(len(drawn), 2, sharey="row", squeeze=False)
    for (measure, title), row in zip(drawn.items(), panels, strict=True):
        for axes, is_root in zip(row, (False, True), strict=True):
            for number, curve in enumerate(curves):
                draw_curve(axes, number, curve, measure, is_root)
                fit, start = fits[curve.name][measure], starts[curve.name][measure]
                if fit is not None and start is not None:
                    draw_fit(axes, number, fit, start, is_root)
            axes.set_xlabel("√KL to the initial policy" if is_root else "KL to the initial policy, nats a response")
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(title)
    panels[0, 0].legend(fontsize=8, frameon=False)
    for suffix in ("png", "svg"):
        figure.savefig(folder / f"frontier.{suffix}")


def draw_curve(axes: Axes, number: int, curve: Curve, measure: str, is_root: bool) -> None:
    """The points of a run with their 95 % intervals, joined in the order of KL."""
    points = sorted(curve.points[measure], key=lambda point: point.distance)
    if not points:
        return
    axes.errorbar(
        [point.distance if is_root else point.kl for point in points],
        [point.value for point in points],
        yerr=_half_intervals(points),
        color=COLOURS[number % len(COLOURS)],
        marker=MARKERS[number // len(COLOURS) % len(MARKERS)],
        linestyle="--" if curve.form == "best_of_n" else "-",
        markersize=4,
        linewidth=1.2,
        elinewidth=0.7,
        label=curve.name,
    )


def draw_fit(axes: Axes, number: int, fit: FrontierFit, start: float, is_root: bool) -> None:
    """The fitted form, as far as it was fitted."""
    distance = np.linspace(0.0, fit.largest_kl**0.5, 200)
    x = distance if is_root else np.square(distance)
    axes.plot(
        x, start + fit.gain(np.square(distance)), color=COLOURS[number % len(COLOURS)], linestyle=":", linewidth=1
    )


def _half_intervals(points: Sequence[Point]) -> list[float] | None:
    if all(point.error is None for point in points):
        return None
    return [NORMAL_95 * (point.error or 0.0) for point in points]
