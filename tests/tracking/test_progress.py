import io

import pytest
from rich.console import Console

from rlhf.tracking import progress as progress_module
from rlhf.tracking.progress import Pace, ProgressBar, format_seconds


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress_module.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def run(console, clock, steps, seconds):
    with ProgressBar("sft", steps, console=console) as bar:
        for step in range(1, steps + 1):
            clock.now += seconds
            bar.update(step, figures={"loss": 2.5}, tokens=step * 100)


def test_log_file_gets_plain_lines_every_ten_seconds(clock):
    output = io.StringIO()
    run(Console(file=output, force_terminal=False), clock, steps=25, seconds=1)
    text = output.getvalue()
    assert "\r" not in text and "\x1b" not in text
    assert text.splitlines() == [
        "sft 10/25  loss 2.5  100 tokens/s  15 s left",
        "sft 20/25  loss 2.5  100 tokens/s  5 s left",
        "sft 25/25  loss 2.5  100 tokens/s",
    ]


def test_terminal_gets_a_bar_with_loss_speed_and_time_left(monkeypatch):
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120)
    with ProgressBar("sft", 10, console=console) as bar:
        bar.update(5, figures={"loss": 2.5}, tokens=1000)
        bar._bar.refresh()
    text = output.getvalue()
    for part in ("sft", "5/10", "loss 2.5", "tokens/s", "left"):
        assert part in text


def test_other_processes_show_nothing(clock, monkeypatch):
    monkeypatch.setattr(progress_module, "is_primary_process", lambda: False)
    for is_terminal in (True, False):
        output = io.StringIO()
        run(Console(file=output, force_terminal=is_terminal), clock, steps=3, seconds=20)
        assert output.getvalue() == ""


def test_step_without_figures_keeps_those_before(clock):
    output = io.StringIO()
    with ProgressBar("sft", 10, start=4, console=Console(file=output, force_terminal=False)) as bar:
        bar.update(5, figures={"loss": 1.5}, tokens=10)
        bar.update(6)
    assert output.getvalue().startswith("sft 6/10  loss 1.5")


def test_pace_forgets_the_slow_beginning():
    pace = Pace(window=3)
    assert pace.steps_per_second is None
    for seconds, step in ((0, 0), (60, 1), (61, 2), (62, 3)):
        pace.mark(seconds, step, step * 10)
    assert pace.steps_per_second == 1 and pace.tokens_per_second == 10


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (42, "42 s"), (200, "3 min 20 s"), (59.9, "1 min 00 s"), (18450, "5 h 07 min")]
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text
