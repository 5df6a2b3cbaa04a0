"""The folder that a stage writes: its resolved config first, its summary last, and what lies between by name.

A stage opens its folder, then looks at everything it was given, and only then begins to write: a run that is refused for what
it was given leaves the folder as it was.
"""

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from rlhf.config_files import config_dict, save_config
from rlhf.disk import explaining_full_disk
from rlhf.errors import UserError
from rlhf.parallel.processes import is_primary_process, wait_for_all
from rlhf.tracking.console import say
from rlhf.training.fingerprint import describe_differences, fingerprint_differences

NOT_IN_FINGERPRINT = ("output", "tracking", "mesh")


@dataclasses.dataclass(frozen=True)
class StageFolder:
    """Paths inside a stage's output folder.

    Attributes:
        path: the folder itself.
        config: of the stage.
        started: when the stage began, in seconds of a monotonic clock.
    """

    path: Path
    config: Any
    started: float

    @property
    def checkpoints(self) -> Path:
        """Where an interrupted run continues from."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The finished model, in Hugging Face form."""
        return self.path / "model"


def open_folder(config: Any) -> StageFolder:
    """Makes the folder named by `config.output`, if it is not there, and changes nothing in it.

    Raises:
        UserError: the folder cannot be written to, or has checkpoints that another configuration made.
    """
    path = Path(config.output)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"output: the folder {path} cannot be made: {error.strerror}", fix="set output to another folder."
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(
            f"output: nothing can be written in the folder {path}",
            fix="set output to another folder, or have its permissions changed.",
        )
    folder = StageFolder(path, config, time.monotonic())
    _refuse_other_config(folder)
    return folder


def begin_writing(folder: StageFolder) -> None:
    """Saves the resolved config in the folder. A summary means finished, so an old one goes."""
    if not is_primary_process():
        return
    (folder.path / "summary.json").unlink(missing_ok=True)
    path = folder.path / "config.yaml"
    with explaining_full_disk(path):
        save_config(folder.config, path.with_suffix(".yaml.partial"))
        path.with_suffix(".yaml.partial").replace(path)


def close_folder(folder: StageFolder, summary: dict[str, Any]) -> dict[str, Any]:
    """Adds the seconds the stage took, writes summary.json, says where it is, and returns the summary.

    When it returns, on whichever process, everything that the stage writes is there.
    """
    summary = {**summary, "seconds": round(time.monotonic() - folder.started, 2)}
    write_json(folder.path / "summary.json", summary)
    say(f"Wrote {folder.path} in {summary['seconds']:.0f} s")
    wait_for_all(f"{folder.path} is finished")
    return summary


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all; the primary process alone."""
    if not is_primary_process():
        return
    partial = path.with_suffix(path.suffix + ".partial")
    with explaining_full_disk(path):
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(path)


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes a JSONL file whole or not at all; the primary process alone."""
    if not is_primary_process():
        return
    partial = path.with_suffix(path.suffix + ".partial")
    with explaining_full_disk(path):
        partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        partial.replace(path)


def fingerprint(config: Any) -> dict[str, Any]:
    """What must be equal for a checkpoint to be continued: all but where it writes, who watches, and the mesh."""
    return _without_bookkeeping(dataclasses.asdict(config))


def _without_bookkeeping(content: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in NOT_IN_FINGERPRINT}


def _refuse_other_config(folder: StageFolder) -> None:
    saved = folder.path / "config.yaml"
    if not (saved.is_file() and folder.checkpoints.is_dir() and any(folder.checkpoints.iterdir())):
        return
    before = _without_bookkeeping(yaml.safe_load(saved.read_text(encoding="utf-8")))
    differences = fingerprint_differences(before, _without_bookkeeping(config_dict(folder.config)))
    if differences:
        raise UserError(
            f"the checkpoints in {folder.path} were made with another configuration ({saved}):{describe_differences(differences)}",
            fix=f"choose another output folder, set these keys back, or delete {folder.path} to train from the beginning.",
        )
