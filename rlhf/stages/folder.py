"""The folder that a stage writes: its resolved config first, its summary last, and what lies between by name."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from rlhf.config_files import save_config
from rlhf.tracking.console import say


@dataclasses.dataclass(frozen=True)
class StageFolder:
    """Paths inside a stage's output folder.

    Attributes:
        path: the folder itself.
        started: when the stage began, in seconds of a monotonic clock.
    """

    path: Path
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
    """Makes the folder named by `config.output` and saves the resolved config in it. A summary means finished, so an old one goes."""
    path = Path(config.output)
    path.mkdir(parents=True, exist_ok=True)
    (path / "summary.json").unlink(missing_ok=True)
    save_config(config, path / "config.yaml")
    return StageFolder(path, time.monotonic())


def close_folder(folder: StageFolder, summary: dict[str, Any]) -> dict[str, Any]:
    """Adds the seconds the stage took, writes summary.json, says where it is, and returns the summary."""
    summary = {**summary, "seconds": round(time.monotonic() - folder.started, 2)}
    write_json(folder.path / "summary.json", summary)
    say(f"Wrote {folder.path} in {summary['seconds']:.0f} s")
    return summary


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def fingerprint(config: Any) -> dict[str, Any]:
    """What must be equal for a checkpoint to be continued: all of the config but where it writes and who watches."""
    content = dataclasses.asdict(config)
    return {key: value for key, value in content.items() if key not in ("output", "tracking")}
