"""Checkpoints of any pytree, on orbax's CheckpointManager: asynchronous, atomic, and honest about what they cannot restore.

A step's folder holds `state` (the arrays, by path) and `metadata` (JSON: the caller's metadata, the fingerprint of the
configuration, the shape and dtype of every array). Orbax writes to a temporary folder and renames it when all is on disk, so
a crash or a full disk leaves the earlier checkpoints as they were. Files that are missing or cut short are noticed when a
checkpoint is read; bits that flipped inside an array's compressed data may not be.
"""

import contextlib
import dataclasses
import errno
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import PreservationContext, PreservationPolicy

from rlhf.disk import is_disk_full
from rlhf.errors import UserError
from rlhf.parallel.processes import is_primary_process, wait_for_all
from rlhf.tracking.console import say
from rlhf.training.array_paths import arrays_by_path, describe_arrays, restore_targets, tree_from_arrays
from rlhf.training.fingerprint import describe_differences, fingerprint_differences
from rlhf.training.orbax_noise import silence_orbax


@dataclasses.dataclass
class _LatestAndBest(PreservationPolicy):
    """Keeps the `latest` newest checkpoints and the best one."""

    latest: int
    best_step: int | None = None

    def should_preserve(self, checkpoints: Sequence, *, context: PreservationContext) -> Sequence[bool]:
        newest = {info.step for info in checkpoints[-self.latest :]}
        return [info.step in newest or info.step == self.best_step for info in checkpoints]


class Checkpointer:
    """Saves and restores a pytree of arrays (or Python numbers, or typed random keys), bit for bit; a context manager.

    Args:
        folder: where checkpoints are kept; made when missing.
        keep: newest checkpoints to keep, besides the best one.
        fingerprint: nested dict of what must be equal for a checkpoint to be continued, for example the resolved
            configuration without the output folder. Values must be such as JSON can hold.
    """

    def __init__(self, folder: Path | str, *, keep: int = 2, fingerprint: Mapping[str, Any] | None = None):
        self.folder = Path(folder).absolute()
        self._fingerprint = json.loads(json.dumps(dict(fingerprint or {}), default=str))
        self._policy = _LatestAndBest(keep)
        silence_orbax()
        with self._explaining_full_disk():
            self._manager = ocp.CheckpointManager(
                self.folder,
                item_handlers={"state": ocp.PyTreeCheckpointHandler(), "metadata": ocp.JsonCheckpointHandler()},
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=self._policy, cleanup_tmp_directories=True, save_root_metadata=False
                ),
            )
        self._policy.best_step = self._find_best()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, exception_type, exception, traceback) -> None:
        try:
            self.close()
        except Exception as error:
            if exception is None:
                raise
            say(f"While stopping, the last checkpoint could not be finished: {error}", style="yellow")

    @property
    def best_step(self) -> int | None:
        """Step of the checkpoint saved last with `best=True`, or None."""
        return self._policy.best_step

    def steps(self) -> list[int]:
        """Steps of the checkpoints that exist, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, metadata: Mapping[str, Any], *, best: bool = False) -> None:
        """Begin to save; returns when the arrays are copied, so that they may be donated, and writes in the background.

        Saving a step that exists does nothing.

        Args:
            step: key of the checkpoint.
            state: pytree to save.
            metadata: JSON values that `restore_latest` gives back.
            best: this is the best state so far: keep it until a better one is saved.

        Raises:
            UserError: the disk is full, now or while the checkpoint before was written.
        """
        if step in self._manager.all_steps():
            return
        arrays = arrays_by_path(state)
        record = {
            "metadata": dict(metadata),
            "fingerprint": self._fingerprint,
            "arrays": describe_arrays(arrays),
            "best": best,
        }
        with self._explaining_full_disk():
            self.wait()
            self._require_space(arrays)
            if best:
                self._policy.best_step = step
            self._manager.save(
                step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(arrays), metadata=ocp.args.JsonSave(record))
            )

    def restore_latest(self, example: Any) -> tuple[Any, int, dict[str, Any]] | None:
        """Restore the newest checkpoint that can be read.

        A checkpoint that cannot be read is reported and put aside (renamed to `<step>.unreadable`) when an earlier one can.

        Args:
            example: a state of the same structure; its arrays, or `jax.ShapeDtypeStruct`s, give shape, dtype and sharding,
                which may be on another mesh than the one that saved. Values are not used.

        Returns:
            (state, step, metadata), or None when there is no checkpoint.

        Raises:
            UserError: the checkpoint was made with another configuration or model, or none of them can be read.
        """
        unreadable: dict[int, Exception] = {}
        for step in reversed(self.steps()):
            try:
                state, metadata = self.restore(step, example)
            except UserError:
                raise
            except Exception as error:
                unreadable[step] = error
                continue
            self._put_aside(unreadable, step)
            return state, step, metadata
        if not unreadable:
            return None
        reasons = "".join(f"\n    {step}: {_first_line(error)}" for step, error in unreadable.items())
        raise UserError(
            f"none of the checkpoints in {self.folder} can be read:{reasons}",
            fix=f"delete {self.folder} to train from the beginning, or choose another output folder.",
        )

    def restore(self, step: int, example: Any) -> tuple[Any, dict[str, Any]]:
        """Restore one checkpoint as (state, metadata); see `restore_latest` for `example`.

        Raises:
            UserError: it was made with another configuration or model.
            Exception: whatever orbax meets in a checkpoint that cannot be read.
        """
        record = self._read_record(step)
        self._check_record(step, record, example)
        arrays, restore_args = restore_targets(example)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(state=ocp.args.PyTreeRestore(item=arrays, restore_args=restore_args)),
        )
        return tree_from_arrays(example, restored["state"]), record["metadata"]

    def wait(self) -> None:
        """Block until the checkpoint being saved is on disk.

        Raises:
            UserError: the disk is full.
        """
        with self._explaining_full_disk():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, then release threads. Raises as `wait` does."""
        with self._explaining_full_disk():
            self._manager.close()

    def _require_space(self, arrays: Mapping[str, Any]) -> None:
        # Before anything is written: a disk that fills up in the middle is noticed too, but later.
        needed, free = (
            sum(getattr(array, "nbytes", 0) for array in arrays.values()),
            shutil.disk_usage(self.folder).free,
        )
        if free < needed:
            raise OSError(errno.ENOSPC, f"{needed / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are free")

    def _read_record(self, step: int) -> dict[str, Any]:
        restored = self._manager.restore(step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore()))
        return restored["metadata"]

    def _find_best(self) -> int | None:
        for step in reversed(self.steps()):
            with contextlib.suppress(Exception):
                if self._read_record(step)["best"]:
                    return step
        return None

    def _check_record(self, step: int, record: Mapping[str, Any], example: Any) -> None:
        differences = fingerprint_differences(record["fingerprint"], self._fingerprint)
        subject = "configuration"
        if not differences:
            subject = "model"
            differences = fingerprint_differences(record["arrays"], describe_arrays(arrays_by_path(example)))
        if differences:
            raise UserError(
                f"checkpoint {step} in {self.folder} was made with another {subject}:{describe_differences(differences)}",
                fix=f"choose another output folder, set these keys back, or delete {self.folder} to train from the beginning.",
            )

    def _put_aside(self, unreadable: Mapping[int, Exception], restored_step: int) -> None:
        if not unreadable:
            return
        for step, error in unreadable.items():
            say(f"Checkpoint {step} in {self.folder} cannot be read ({_first_line(error)}).", style="yellow")
            if is_primary_process():
                aside = self.folder / f"{step}.unreadable"
                shutil.rmtree(aside, ignore_errors=True)
                (self.folder / str(step)).rename(aside)
        wait_for_all("unreadable checkpoints are put aside")
        say(f"Continuing from checkpoint {restored_step} instead; the unreadable ones are put aside.", style="yellow")
        self._manager.reload()
        self._policy.best_step = self._find_best()

    @contextlib.contextmanager
    def _explaining_full_disk(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if not is_disk_full(error):
                raise
            detail = f" ({error.strerror})" if isinstance(error, OSError) else ""
            kept = ", ".join(str(step) for step in self._steps_on_disk()) or "none"
            raise UserError(
                f"the disk is full{detail}: a checkpoint could not be saved in {self.folder}. Checkpoints intact: {kept}",
                fix="free some space (or keep fewer checkpoints) and run the same command to continue.",
            ) from error

    def _steps_on_disk(self) -> list[int]:
        return sorted(int(path.name) for path in self.folder.glob("*") if path.name.isdigit())


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
