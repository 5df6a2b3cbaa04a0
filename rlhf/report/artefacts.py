"""What a run has left in its folder, read for the report; every part may be missing."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.errors import UserError

TRAINED_STAGES = {
    "pretrain": "Pretraining",
    "sft": "Supervised fine-tuning",
    "helpfulness": "Helpfulness reward model",
    "safety": "Safety reward model",
}


@dataclass(frozen=True)
class Measure:
    """A measured number with its bootstrap interval.

    Attributes:
        value: the estimate.
        low: lower end of the interval; equal to `value` if none was measured.
        high: upper end.
    """

    value: float
    low: float
    high: float

    @property
    def has_interval(self) -> bool:
        """Whether an interval was measured."""
        return self.high > self.low


def read_measure(found: Any) -> Measure | None:
    """A measure from {"value", "low", "high"} or from a bare number; None for anything else and for NaN."""
    if isinstance(found, dict) and "value" in found:
        found = (found["value"], found.get("low", found["value"]), found.get("high", found["value"]))
    elif isinstance(found, int | float) and not isinstance(found, bool):
        found = (found, found, found)
    else:
        return None
    if any(not isinstance(number, int | float) or not math.isfinite(number) for number in found):
        return None
    return Measure(*map(float, found))


@dataclass(frozen=True)
class Artefacts:
    """The parts of a run's folder.

    Attributes:
        folder: where they were found.
        summary: summary.json: policies, reward_models, seconds, seed, config.
        metrics: stage → lines of its metrics.jsonl.
        frontier: points of reward and gold score against KL.
        samples: answers of the policies to the same prompts.
        missing: names of files that were not there.
    """

    folder: Path
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    frontier: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    missing: tuple[str, ...] = ()

    @property
    def policies(self) -> dict[str, dict[str, Any]]:
        """Policy → what was measured of it."""
        return self.summary.get("policies") or {}

    @property
    def reward_models(self) -> dict[str, dict[str, Any]]:
        """Reward model → what was measured of it."""
        return self.summary.get("reward_models") or {}


def read_artefacts(folder: str | Path) -> Artefacts:
    """Read whatever a run's folder holds.

    Raises:
        UserError: the folder does not exist, or nothing in it can be reported.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"run: no folder {folder}", fix="name the folder of a run, as in --run=runs/demo.")
    metrics = {stage: read_lines(folder / stage / "metrics.jsonl") for stage in (*TRAINED_STAGES, "ppo")}
    samples = read_lines(folder / "evaluate" / "samples.jsonl")
    summary, frontier = read_json(folder / "summary.json"), read_json(folder / "frontier.json")
    found = {
        "summary.json": summary,
        "frontier.json": frontier,
        "evaluate/samples.jsonl": samples,
        **{f"{stage}/metrics.jsonl": lines for stage, lines in metrics.items()},
    }
    missing = tuple(name for name, content in found.items() if not content)
    if len(missing) == len(found):
        raise UserError(
            f"run: {folder} holds none of {', '.join(missing)}",
            fix="name the folder that `rlhf pipeline` wrote, as in --run=runs/demo.",
        )
    return Artefacts(
        folder=folder,
        summary=summary if isinstance(summary, dict) else {},
        metrics={stage: lines for stage, lines in metrics.items() if lines},
        frontier=frontier if isinstance(frontier, list) else [],
        samples=samples,
        missing=missing,
    )


def read_json(path: Path) -> Any:
    """Content of a JSON file; None if there is none."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: not JSON: {error.msg}", fix="run the stage that writes it again."
        ) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Records of a JSONL file; none if there is no file. A last line cut short by an interruption is left out."""
    if not path.is_file():
        return []
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise UserError(f"{path}:{number}: not JSON: {error.msg}", fix="mend or remove the line.") from error
    return records


def series(records: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and finite values of one metric."""
    points = [
        (record["step"], record[key])
        for record in records
        if "step" in record and isinstance(record.get(key), int | float) and math.isfinite(record[key])
    ]
    return [float(step) for step, _ in points], [float(value) for _, value in points]
