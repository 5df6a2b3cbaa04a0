"""The curves of reward against KL that runs have left in their folders: checks of a policy in training, and best-of-n."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf.errors import UserError
from rlhf.evaluation.equal_kl import NORMAL_95, Point
from rlhf.evaluation.over_optimisation import Form
from rlhf.report.artefacts import read_json, read_lines, read_measure

CHECK, CHECK_ERROR = "held_out/", "held_out_error/"


@dataclass(frozen=True)
class Curve:
    """One run's points.

    Attributes:
        name: what to call it.
        form: "rl" for a policy in training, "best_of_n".
        points: measure ("reward", "gold_score", …) → points.
    """

    name: str
    form: Form
    points: dict[str, list[Point]]


def read_curves(folders: Sequence[str | Path], measures: Sequence[str], best_of_n_kl: str = "kl") -> list[Curve]:
    """Every curve in these folders: stage folders, or folders of pipelines, whose stages are then looked through.

    Args:
        folders: of runs.
        measures: what is drawn against KL.
        best_of_n_kl: the key of best-of-n's KL: "kl" (the bound) or "kl_estimate".

    Raises:
        UserError: a folder is missing, or has neither metrics.jsonl with checks on held-out prompts nor best_of_n.json.
    """
    curves = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f"runs: no folder {folder}", fix="name folders of runs, as in `rlhf frontier runs/demo`.")
        stages = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
        found = [curve for stage in stages for curve in _curves_of(stage, measures, best_of_n_kl)]
        if not found:
            raise UserError(
                f"runs: {folder} holds no curve: neither metrics.jsonl with held_out/kl nor best_of_n.json",
                fix="name the output of `rlhf ppo` (with evaluate_every above 0), of `rlhf best-of-n` or of `rlhf pipeline`.",
            )
        curves += found
    return _with_short_names(curves)


def _curves_of(stage: Path, measures: Sequence[str], best_of_n_kl: str) -> list[Curve]:
    curves = []
    checks = [line for line in read_lines(stage / "metrics.jsonl") if f"{CHECK}kl" in line]
    if checks:
        points = {measure: [point for line in checks if (point := _check(line, measure))] for measure in measures}
        curves.append(Curve(str(stage), "rl", points))
    estimates = list((read_json(stage / "best_of_n.json") or {}).values())
    if estimates:
        if any(best_of_n_kl not in entry for entry in estimates):
            raise UserError(
                f"{stage / 'best_of_n.json'} has no {best_of_n_kl}",
                fix="run `rlhf best-of-n` again, or set best_of_n_kl to bound.",
            )
        points = {m: [point for e in estimates if (point := _estimate(e, m, best_of_n_kl))] for m in measures}
        curves.append(Curve(str(stage), "best_of_n", points))
    return curves


def _check(line: dict[str, Any], measure: str) -> Point | None:
    value = read_measure(line.get(CHECK + measure))
    return value and Point(line[f"{CHECK}kl"], value.value, line.get(CHECK_ERROR + measure))


def _estimate(entry: dict[str, Any], measure: str, kl: str) -> Point | None:
    value = read_measure(entry.get(measure))
    if value is None:
        return None
    error = (value.high - value.low) / (2 * NORMAL_95) if value.has_interval else None
    return Point(entry[kl]["value"], value.value, error)


def _with_short_names(curves: list[Curve]) -> list[Curve]:
    """Names as short as they can be while still telling the curves apart: the ends of their paths."""
    paths = [Path(curve.name).parts for curve in curves]
    names: list[str] = []
    for length in range(1, max(map(len, paths), default=0) + 1):
        names = ["/".join(path[-length:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return [replace(curve, name=name) for name, curve in zip(names, curves, strict=True)]
