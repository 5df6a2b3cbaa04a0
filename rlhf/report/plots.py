"""Figures of the report, as SVG text that takes its colours from the page.

Figures are drawn in stand-in colours which `svg` replaces by CSS variables, so that one picture suits a light and a dark page.
Each function draws one panel; the page arranges them.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlhf.report.artefacts import Measure

# Stand-in colour → CSS variable of report.css.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = ("#a10001", "#a10002", "#a10003", "#a10004")
CSS_COLOURS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, start=1)},
}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rlhf",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
}
PANEL = (3.6, 2.35)  # inches
WIDE_PANEL = (5.2, 3.3)


def svg(
    draw: Callable[..., None], *arguments: Any, size: tuple[float, float] = PANEL, name: str, description: str
) -> str:
    """Draw one panel and return it as an inline `<svg>` element.

    Args:
        draw: function of (axes, *arguments).
        arguments: what it draws.
        size: width and height in inches.
        name: put before every id inside, because ids must be unique on a page.
        description: what the picture shows, for readers who do not see it.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot(), *arguments)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(buffer.getvalue(), name, description)


def _for_page(text: str, name: str, description: str) -> str:
    """Matplotlib's SVG document as an element of a page: no prologue, own ids, colours and fonts of the page."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style).*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'xlink:href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    for colour, variable in CSS_COLOURS.items():
        text = text.replace(colour, variable)
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def draw_lines(axes: Axes, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str = "step") -> None:
    """Curves of metrics over steps, each `label → (steps, values)`; a legend only where there are several."""
    for (label, (steps, values)), colour in zip(lines.items(), SERIES, strict=False):
        axes.plot(steps, values, color=colour, label=label, marker="o" if len(steps) < 12 else None, markersize=3)
    axes.set_xlabel(x_label)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if len(lines) > 1:
        axes.legend()


def draw_frontier(axes: Axes, curves: Mapping[str, list[dict[str, Any]]], key: str, y_label: str) -> None:
    """Reward against KL to the SFT policy, one curve a policy, the points named.

    Args:
        axes: where to draw.
        curves: policy → points with "kl", `key` and "label".
        key: what goes up the y axis.
        y_label: what it is called.
    """
    beside = [{"xytext": (-3, 6), "ha": "right"}, {"xytext": (3, -11), "ha": "left"}]
    for number, (policy, points) in enumerate(curves.items()):
        colour, marker = SERIES[number % len(SERIES)], "os^D"[number % 4]
        points = sorted((p for p in points if p.get(key) is not None), key=lambda point: point["kl"])
        if not points:
            continue
        kl, height = [p["kl"] for p in points], [p[key] for p in points]
        axes.plot(kl, height, color=colour, marker=marker, markersize=4, label=policy)
        for index in {len(points) // 2, len(points) - 1}:
            name = str(points[index].get("label", ""))
            at = (kl[index], height[index])
            axes.annotate(name, at, textcoords="offset points", fontsize=8, color=colour, **beside[number % 2])
    axes.set_xlabel("KL to the SFT policy, nats a response")
    axes.set_ylabel(y_label)
    axes.margins(x=0.12, y=0.15)
    axes.legend(loc="lower right")


def draw_intervals(axes: Axes, rows: Sequence[tuple[str, Measure]], reference: float | None) -> None:
    """A dot with its interval a row, the first row on top; a dashed line at a reference value."""
    heights = range(len(rows))[::-1]
    for height, (_, measure) in zip(heights, rows, strict=True):
        axes.plot([measure.low, measure.high], [height, height], color=SERIES[0], linewidth=2, solid_capstyle="round")
        axes.plot([measure.value], [height], color=SERIES[0], marker="o", markersize=5)
    if reference is not None:
        axes.axvline(reference, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(list(heights), [label for label, _ in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def draw_reliability(axes: Axes, models: Mapping[str, list[dict[str, float]]]) -> None:
    """Accuracy against confidence of pairwise choices; a calibrated model lies on the diagonal."""
    axes.plot([0.5, 1], [0.5, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="calibrated")
    for (name, bins), colour, marker in zip(models.items(), SERIES, "os^D", strict=False):
        filled = [b for b in bins if b.get("count", 1) and b.get("accuracy") is not None]
        confidence, accuracy = [b["confidence"] for b in filled], [b["accuracy"] for b in filled]
        axes.plot(confidence, accuracy, color=colour, marker=marker, markersize=4, label=name)
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    axes.legend()


def draw_accuracy_by_length(axes: Axes, models: Mapping[str, list[dict[str, float]]]) -> None:
    """Accuracy where the chosen response is shorter (left) or longer (right) than the other."""
    for (name, bins), colour, marker in zip(models.items(), SERIES, "os^D", strict=False):
        filled = [b for b in bins if b.get("count", 1) and b.get("accuracy") is not None]
        middle = [(b["low"] + b["high"]) / 2 for b in filled]
        axes.plot(middle, [b["accuracy"] for b in filled], color=colour, marker=marker, markersize=4, label=name)
    axes.axhline(0.5, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlabel("length of chosen minus rejected, tokens")
    axes.set_ylabel("accuracy")
    axes.legend()
