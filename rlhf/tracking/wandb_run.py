"""One Weights & Biases run for one stage folder, however often the stage is interrupted and continued."""

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf.errors import UserError

RUN_ID_FILE = "wandb_run_id.txt"


def _import_wandb():
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "tracking.wandb: the package wandb is not installed",
            fix="pip install wandb, or set tracking.wandb=off.",
        ) from error
    return wandb


def _run_id(folder: Path, *, continued: bool) -> str:
    """The stored id when the run is continued, else a new one (a sweep agent's, where there is one), which is stored."""
    stored = folder / RUN_ID_FILE
    if continued and stored.exists():
        return stored.read_text(encoding="utf-8").strip()
    run_id = os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:12]
    stored.write_text(run_id + "\n", encoding="utf-8")
    return run_id


class WandbRun:
    """Sends metrics and tables to Weights & Biases.

    The step is sent as a metric of its own, because wandb's internal step cannot go back to that of a checkpoint.

    Args:
        folder: the stage folder; wandb's files and the run id are kept in it.
        mode: "online" or "offline" (sent later with `wandb sync`).
        project: wandb project.
        run_name: name shown by wandb; None lets wandb choose.
        run_config: the resolved configuration.
        continued: whether this continues the run whose id is in the folder.

    Raises:
        UserError: wandb is not installed, or could not start (no key, no network).
    """

    def __init__(
        self, folder: Path, *, mode: str, project: str, run_name: str | None, run_config: Mapping, continued: bool
    ):
        self._wandb = _import_wandb()
        run_id = _run_id(folder, continued=continued)
        try:
            self._run = self._wandb.init(
                project=project,
                name=run_name,
                id=run_id,
                mode=mode,
                resume="allow",
                dir=str(folder),
                config=dict(run_config),
            )
        except self._wandb.Error as error:
            raise UserError(
                f"tracking.wandb={mode}: wandb could not start: {error}",
                fix="run `wandb login`, or set tracking.wandb=offline (send later with `wandb sync`) or off.",
            ) from error
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send numbers of a step."""
        self._run.log({"step": step, **metrics})

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, object]]) -> None:
        """Send rows as a wandb Table; columns are the keys in order of appearance."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        data = [[row.get(column) for column in columns] for row in rows]
        self._run.log({"step": step, name: self._wandb.Table(columns=columns, data=data)})

    def summarize(self, values: Mapping[str, object]) -> None:
        """Set the run's summary, which sweeps optimise and run tables show."""
        self._run.summary.update(dict(values))

    def close(self, *, failed: bool = False) -> None:
        """Finish the run; `failed` marks it as crashed."""
        self._run.finish(exit_code=1 if failed else 0)
