"""TensorBoard event files of a stage folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf.errors import UserError


class TensorboardRun:
    """Writes metrics and tables to `folder/tensorboard`.

    Args:
        folder: the stage folder.
        resume_step: events after this step are marked as superseded.

    Raises:
        UserError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path, resume_step: int):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise UserError(
                "tracking.tensorboard: the package tensorboardX is not installed",
                fix="pip install tensorboardX, or set tracking.tensorboard=false.",
            ) from error
        self._writer = SummaryWriter(
            logdir=str(folder / "tensorboard"), purge_step=resume_step + 1 if resume_step else 0
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write each number as a scalar."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, float(value), step)

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, object]]) -> None:
        """Write the rows as text."""
        lines = ["\n".join(f"**{key}**: {value}" for key, value in row.items()) for row in rows]
        self._writer.add_text(name, "\n\n---\n\n".join(lines), step)

    def summarize(self, values: Mapping[str, object]) -> None:
        """Write the summary as text, since TensorBoard knows no other kind of final value."""
        self._writer.add_text("summary", "\n\n".join(f"**{name}**: {value}" for name, value in values.items()))

    def close(self, *, failed: bool = False) -> None:
        """Flush and close; TensorBoard does not record whether the run failed."""
        self._writer.close()
