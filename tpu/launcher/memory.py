"""What the laptop remembers of a launch, so that the same command goes on where it was."""

import json
import os
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class Launch:
    """One experiment under one name.

    Attributes:
        name: of the request.
        project: of Google Cloud.
        zone: of Google Cloud.
        type: of the slices.
        slices: how many.
        run_id: of the run in wandb, the same however often the program is started again.
        attempt: what the latest start on the machines is called; None before the first.
        collected: whether its end has been seen.
        program: what runs there.
    """

    name: str
    project: str
    zone: str
    type: str
    slices: int
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    attempt: str | None = None
    collected: bool = False
    program: list[str] = field(default_factory=list)


def folder() -> Path:
    """Where launches are remembered."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "rlhf-tpu"


def log_path(name: str, attempt: str | None) -> Path:
    """The copy of what the program wrote since it was started, which is one file a start."""
    return folder() / f"{name}.{attempt}.log"


def recall(name: str) -> Launch | None:
    """The launch of that name, if this machine made one."""
    path = folder() / f"{name}.json"
    return Launch(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def remember(launch: Launch) -> None:
    """Writes it down, whole or not at all."""
    folder().mkdir(parents=True, exist_ok=True)
    partial = folder() / f"{launch.name}.partial"
    partial.write_text(json.dumps(asdict(launch), indent=2) + "\n", encoding="utf-8")
    partial.replace(folder() / f"{launch.name}.json")


def forget(name: str) -> None:
    """Drops it; the copy of the output stays."""
    (folder() / f"{name}.json").unlink(missing_ok=True)
