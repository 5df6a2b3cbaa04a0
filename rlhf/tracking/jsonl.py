"""JSON lines that a continued run can go on writing as if it had never stopped.

Each record carries the step it belongs to. A run that is continued from step k first drops the records after k, which it is
about to make again; a line that was cut off by a crash is dropped too. Every line is flushed when written.
"""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rlhf.disk import explaining_full_disk


def to_json_value(value: object) -> object:
    """A value that JSON can hold.

    Numbers that are not finite become null, because JSON has no word for them. A float32 is written with the fewest digits
    that give back the same float32.
    """
    if hasattr(value, "ndim") and value.ndim == 0:
        value = np.asarray(value)[()]
    if isinstance(value, np.floating) and value.dtype.itemsize < 8:
        value = float(str(value))
    elif isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_value(item) for item in value]
    if isinstance(value, np.ndarray):
        return [to_json_value(item) for item in value]
    return value


def _keep_until(path: Path, last_step: int) -> None:
    """Drop the records after `last_step`, and what cannot be read, in one atomic replacement."""
    kept_path = path.with_name(path.name + ".kept")
    with path.open("rb") as lines, kept_path.open("wb") as kept:
        for line in lines:
            try:
                step = json.loads(line)["step"]
            except (ValueError, KeyError, TypeError):
                continue
            if step <= last_step and line.endswith(b"\n"):
                kept.write(line)
    os.replace(kept_path, path)


class JsonlFile:
    """An append-only file of records, one JSON object a line, each with its step.

    Args:
        path: the file; its folder must exist.
        resume_step: records after this step are dropped; 0 means a run from the beginning, which drops all.
    """

    def __init__(self, path: Path, resume_step: int):
        self._path = path
        if resume_step > 0 and path.exists():
            _keep_until(path, resume_step)
            self._file = path.open("a", encoding="utf-8")
        else:
            self._file = path.open("w", encoding="utf-8")

    def write(self, step: int, record: Mapping[str, object]) -> None:
        """Append {"step": step, **record} and flush it.

        Raises:
            UserError: the disk is full.
        """
        line = json.dumps({"step": step, **to_json_value(record)}, ensure_ascii=False, allow_nan=False)
        with explaining_full_disk(self._path):
            self._file.write(line + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file; writing afterwards is an error."""
        # Every line has been flushed, so closing can only fail for a line whose failure has been reported already.
        with contextlib.suppress(OSError):
            self._file.close()
