import subprocess
import sys

from rlhf.tracking import console as console_module
from rlhf.tracking.console import say


def test_say_prints_one_unwrapped_line_to_stderr(capsys):
    message = "wrote [bold]/a/b[0] " + "x" * 300
    say(message, style="yellow")
    output = capsys.readouterr()
    assert output.err == message + "\n" and output.out == ""


def test_other_processes_are_silent(capsys, monkeypatch):
    monkeypatch.setattr(console_module, "is_primary_process", lambda: False)
    say("hello")
    assert capsys.readouterr().err == ""


def test_speaking_starts_no_device():
    program = (
        "from rlhf.tracking.console import say; say('hi'); from jax._src import xla_bridge; "
        "assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
