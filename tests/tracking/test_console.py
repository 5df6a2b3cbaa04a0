import subprocess
import sys

from rlhf.tracking import console as console_module
from rlhf.tracking.console import say, show_summary


def test_say_prints_one_unwrapped_line_to_stderr(capsys):
    message = "wrote [bold]/a/b[0] " + "x" * 300
    say(message, style="yellow")
    output = capsys.readouterr()
    assert output.err == message + "\n" and output.out == ""


def test_summary_shows_names_and_values(capsys):
    show_summary("Reward model", {"accuracy": 0.71234, "pairs": 12000})
    text = capsys.readouterr().err
    assert "Reward model" in text and "0.7123" in text and "12000" in text


def test_other_processes_are_silent(capsys, monkeypatch):
    monkeypatch.setattr(console_module, "is_primary_process", lambda: False)
    say("hello")
    show_summary("title", {"a": 1})
    assert capsys.readouterr().err == ""


def test_speaking_starts_no_device():
    program = (
        "from rlhf.tracking.console import say; say('hi'); from jax._src import xla_bridge; "
        "assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
