"""How far a run is: a bar in a terminal, a plain line every few seconds in a log file."""

import time
from collections import deque
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from rlhf.parallel.processes import is_primary_process
from rlhf.tracking.console import console as shared_console


class Pace:
    """Speed over the most recent updates, so that the first step's compilation does not distort what is left.

    Args:
        window: number of updates that are averaged.
    """

    def __init__(self, window: int = 50):
        self._marks: deque[tuple[float, int, int]] = deque(maxlen=window)

    def mark(self, seconds: float, step: int, tokens: int) -> None:
        """Note that `step` steps and `tokens` tokens in total were done at clock time `seconds`."""
        self._marks.append((seconds, step, tokens))

    def _rate(self, column: int) -> float | None:
        if len(self._marks) < 2 or self._marks[-1][0] <= self._marks[0][0]:
            return None
        first, last = self._marks[0], self._marks[-1]
        return (last[column] - first[column]) / (last[0] - first[0])

    @property
    def steps_per_second(self) -> float | None:
        """Steps a second, or None before it can be known."""
        return self._rate(1)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens a second, or None before it can be known."""
        return self._rate(2)


class ProgressBar:
    """Shows step, figures such as the loss, tokens a second and the time left; a context manager.

    In a terminal this is a live bar. Elsewhere (a log file, a cluster job) it prints one line every `interval` seconds and
    one at the end. Only the primary process shows anything.

    Args:
        description: what is running, for example "sft".
        total: steps of the whole run.
        start: steps that were done before, in a run that is continued.
        console: where to show it.
        interval: seconds between lines when the console is no terminal.
    """

    def __init__(
        self, description: str, total: int, *, start: int = 0, console: Console = shared_console, interval: float = 10.0
    ):
        self._description = description
        self._total = total
        self._step = start
        self._tokens = 0
        self._figures = ""
        self._console = console
        self._interval = interval
        self._shown = is_primary_process()
        self._pace = Pace()
        self._pace.mark(time.monotonic(), start, 0)
        self._last_line = time.monotonic()
        self._last_line_step: int | None = None
        self._bar = self._make_bar() if console.is_terminal and self._shown else None

    def _make_bar(self) -> Progress:
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
        )
        self._task = bar.add_task(self._description, total=self._total, completed=self._step, figures="")
        return bar

    def __enter__(self) -> "ProgressBar":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._shown and self._step != self._last_line_step:
            self._print_line()

    def update(self, step: int, *, figures: Mapping[str, float] | None = None, tokens: int | None = None) -> None:
        """Move to `step`.

        Args:
            step: steps done since the beginning of the run.
            figures: numbers to show, by name; None keeps those shown before.
            tokens: tokens processed since this bar began; None when not known at this step.
        """
        now = time.monotonic()
        self._step = step
        if tokens is not None:
            self._tokens = tokens
            self._pace.mark(now, step, tokens)
        if figures is not None:
            self._figures = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=step, figures=self._describe())
        elif self._shown and now - self._last_line >= self._interval:
            self._print_line()

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        self._last_line_step = self._step
        line = f"{self._description} {self._step}/{self._total}  {self._describe()}".rstrip()
        self._console.print(line, markup=False, soft_wrap=True)

    def _describe(self) -> str:
        parts = [self._figures] if self._figures else []
        if self._pace.tokens_per_second:
            parts.append(f"{self._pace.tokens_per_second:,.0f} tokens/s")
        if self._pace.steps_per_second and self._step < self._total:
            parts.append(f"{format_seconds((self._total - self._step) / self._pace.steps_per_second)} left")
        return "  ".join(parts)


def format_seconds(seconds: float) -> str:
    """A duration as people write it: 42 s, 3 min 20 s, 5 h 07 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
