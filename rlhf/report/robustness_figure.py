"""Score under the model that was trained on, and under the one that was not, against √KL."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

SERIES = (("trained_on", "model the policy was trained on", "#d55e00"), ("test", "model of the other half", "#0072b2"))


def save_robustness(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a PNG; `rows` are those of `rlhf.evaluation.robustness.along_training`."""
    figure = Figure(figsize=(5.5, 3.8), layout="constrained", dpi=130)
    axes = figure.add_subplot()
    distance = [max(row["kl"], 0.0) ** 0.5 for row in rows]
    for key, label, colour in SERIES:
        values = [row[key]["value"] for row in rows]
        below = [row[key]["value"] - row[key]["low"] for row in rows]
        above = [row[key]["high"] - row[key]["value"] for row in rows]
        axes.errorbar(distance, values, yerr=[below, above], color=colour, marker="o", markersize=4, label=label)
    axes.set_xlabel("√KL to the initial policy")
    axes.set_ylabel("score")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
