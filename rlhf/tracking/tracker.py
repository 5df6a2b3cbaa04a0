"""The Tracker: what a run reports, written to every place that was asked for.

In the stage folder it writes
    metrics.jsonl   one line a step, numbers that depend on configuration and data only, never on the clock;
    timings.jsonl   seconds and speeds, which differ from run to run and are therefore kept apart;
    <name>.jsonl    tables, for example sampled completions, one line a row.
A run that was interrupted and continued leaves the same metrics.jsonl and tables, byte for byte, as one that was not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlhf.parallel.processes import is_primary_process
from rlhf.tracking.jsonl import JsonlFile
from rlhf.tracking.tensorboard_run import TensorboardRun
from rlhf.tracking.wandb_run import WandbRun


@dataclass(frozen=True)
class TrackingConfig:
    """Where metrics go besides the JSONL files of the stage folder.

    Attributes:
        wandb: Weights & Biases: not at all, sent as the run goes, or stored to be sent later with `wandb sync`.
        project: wandb project.
        run_name: name of the run in wandb; None lets wandb choose.
        tensorboard: write TensorBoard event files.
    """

    wandb: Literal["off", "online", "offline"] = "off"
    project: str = "rlhf"
    run_name: str | None = None
    tensorboard: bool = False


FILES_ONLY = TrackingConfig()


class Tracker:
    """Writes metrics, timings and tables of one stage; a context manager. Processes other than the first write nothing.

    Args:
        config: where to write besides the folder.
        folder: the stage folder; made when missing.
        run_config: the resolved configuration, shown by wandb.
        resume_step: the step of the checkpoint that is continued: later records are dropped and will be written again. 0 for a
            run from the beginning, which starts empty files.

    Raises:
        UserError: a package that the config asks for is missing, or wandb cannot start.
    """

    def __init__(self, config: TrackingConfig, folder: Path, run_config: Mapping, resume_step: int = 0):
        self._folder = Path(folder)
        self._resume_step = resume_step
        self._writes = is_primary_process()
        self._files: dict[str, JsonlFile] = {}
        self._runs: list[WandbRun | TensorboardRun] = []
        if not self._writes:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self._open("metrics")
        self._open("timings")
        if config.tensorboard:
            self._runs.append(TensorboardRun(self._folder, resume_step))
        if config.wandb != "off":
            self._runs.append(
                WandbRun(
                    self._folder,
                    mode=config.wandb,
                    project=config.project,
                    run_name=config.run_name,
                    run_config=run_config,
                    continued=resume_step > 0,
                )
            )

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, exception_type, exception, traceback) -> None:
        self.close(failed=exception_type is not None)

    def _open(self, name: str) -> JsonlFile:
        if name not in self._files:
            self._files[name] = JsonlFile(self._folder / f"{name}.jsonl", self._resume_step)
        return self._files[name]

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step as one line; numbers that are not finite become null there.

        Args:
            step: steps done when the metrics were taken; must not decrease from call to call.
            metrics: numbers by name, without anything that depends on the clock (see `log_timings`).
        """
        if self._writes:
            self._open("metrics").write(step, metrics)
            for run in self._runs:
                run.log(step, metrics)

    def log_timings(self, step: int, timings: Mapping[str, float]) -> None:
        """Write seconds and speeds to timings.jsonl, and to the other places under "time/"."""
        if self._writes:
            self._open("timings").write(step, timings)
            for run in self._runs:
                run.log(step, {f"time/{name}": value for name, value in timings.items()})

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, object]]) -> None:
        """Append rows, for example prompts with sampled completions, to `<name>.jsonl`, each with the step.

        The file belongs to the tracker: its rows after the step that a run continues from are dropped at the first call.
        """
        if self._writes:
            file = self._open(name)
            for row in rows:
                file.write(step, row)
            for run in self._runs:
                run.table(name, step, rows)

    def summarize(self, values: Mapping[str, object]) -> None:
        """Hand the final values to wandb (where sweeps read them) and TensorBoard."""
        for run in self._runs:
            run.summarize(values)

    def close(self, *, failed: bool = False) -> None:
        """Close all files and runs; `failed` lets wandb mark the run as crashed."""
        for destination in self._files.values():
            destination.close()
        for run in self._runs:
            run.close(failed=failed)
        self._files, self._runs, self._writes = {}, [], False
