"""The command line, with a pretended stage."""

import json
import subprocess
import sys
from dataclasses import dataclass
from types import ModuleType

import pytest

from rlhf import __version__, cli
from rlhf.errors import OrderlyStop, UserError


@dataclass(frozen=True)
class Part:
    """A part.

    Attributes:
        kl_coef: weight of the penalty, 100% sure.
    """

    kl_coef: float = 0.1


@dataclass(frozen=True)
class Config:
    """A stage.

    Attributes:
        output: folder.
        ppo: the algorithm.
        extra: another, or none.
    """

    output: str
    ppo: Part = Part()
    extra: Part | None = None


class Interrupted(OrderlyStop):
    """What training raises when it has been told to stop."""

    exit_code = 75


@pytest.fixture
def stage(monkeypatch):
    """A stage module that remembers what it was run with; its `error`, if set, is raised."""
    module = ModuleType("pretended_stage", "Does nothing.\n\nMore about it.")
    module.Config, module.calls, module.error = Config, [], None

    def run(config):
        module.calls.append(config)
        if module.error is not None:
            raise module.error
        return {}

    module.run = run
    monkeypatch.setitem(sys.modules, "pretended_stage", module)
    monkeypatch.setitem(cli.STAGES, "pretend", ("pretended_stage", "does nothing"))
    return module


def test_files_and_overrides_reach_the_stage(stage, tmp_path):
    (tmp_path / "a.yaml").write_text("output: a\nppo: {kl_coef: 1}\n")
    (tmp_path / "b.yaml").write_text("output: b\n")
    words = ["pretend", "--config", f"{tmp_path}/a.yaml", f"--config={tmp_path}/b.yaml", "--extra.kl_coef", "2"]
    assert cli.main(words) == 0
    assert stage.calls == [Config("b", Part(1.0), Part(2.0))]


@pytest.mark.parametrize("value", ["-1", "-0.5"])
def test_negative_numbers_are_values(stage, value):
    assert cli.main(["pretend", "--output", "x", "--ppo.kl_coef", value]) == 0
    assert stage.calls[0].ppo.kl_coef == float(value)


def test_printed_configuration_runs_the_same(stage, tmp_path, capsys):
    words = ["--output=x", "--ppo.kl_coef=3"]
    assert cli.main(["pretend", *words, "--print_config"]) == 0
    assert not stage.calls
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    assert cli.main(["pretend", *words]) == cli.main(["pretend", f"--config={tmp_path}/c.yaml"]) == 0
    assert stage.calls[0] == stage.calls[1]


def test_help_shows_every_key_with_its_documentation(stage, capsys):
    assert cli.main(["pretend", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in [
        "Does nothing.",
        "--output STR",
        "folder. (required)",
        "--ppo.kl_coef FLOAT",
        "100% sure. (default: 0.1)",
        "--extra.kl_coef FLOAT",
        "another, or none.",
        "default: null",
    ]:
        assert part in text
    assert "More about it" not in text


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            ["pretend", "--output=x", "--ppo.kl_cof=1"],
            ["command line: unknown key ppo.kl_cof", "did you mean ppo.kl_coef?"],
        ),
        (["pretend", "--output=x", "--ppo.kl_coef=high"], ["command line: ppo.kl_coef should be float, found 'high'"]),
        (["pretend", "--output=x", "--ppo.kl_coef"], ["--ppo.kl_coef has no value"]),
        (["pretend", "--output", "--print_config"], ["--output has no value"]),
        (["pretend", "stray"], ["'stray' is not an option"]),
        (["pretend"], ["required keys are not set: output"]),
        (["pretnd"], ["unknown command pretnd", "did you mean rlhf pretend?"]),
    ],
)
def test_mistakes_exit_with_2_and_say_what_to_do(stage, capsys, words, parts):
    assert cli.main(words) == 2
    message = capsys.readouterr().err
    for part in [*parts, "What to do: "]:
        assert part in message
    assert "Traceback" not in message and not stage.calls


def test_a_user_error_of_the_stage_exits_with_2(stage, capsys):
    stage.error = UserError("data.path: no such file", fix="name another.")
    assert cli.main(["pretend", "--output=x"]) == 2
    assert "data.path: no such file" in capsys.readouterr().err


def test_an_interruption_decides_the_exit_status(stage, capsys, monkeypatch):
    stage.error = Interrupted("saved at step 3")
    assert cli.main(["pretend", "--output=x"]) == 75
    assert "saved at step 3" in capsys.readouterr().err


def test_other_errors_keep_their_traceback(stage):
    stage.error = RuntimeError("a mistake in the code")
    with pytest.raises(RuntimeError, match="a mistake in the code"):
        cli.main(["pretend", "--output=x"])


def test_overview_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {command} " in text for command in cli.STAGES)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"rlhf {__version__}\n"


@pytest.mark.parametrize("statement", ["import rlhf", "import rlhf.cli; rlhf.cli.main(['--help'])"])
def test_nothing_heavy_is_imported_before_it_is_needed(statement):
    code = f"{statement}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    modules = json.loads(printed.splitlines()[-1])
    heavy = {"jax", "flax", "numpy", "wandb", "datasets", "transformers", "matplotlib", "jsonargparse", "rich"}
    assert not heavy & set(modules)
    assert not [name for name in modules if name.startswith("rlhf.stages")]


def test_a_reader_that_stops_reading_is_no_error():
    command = f"{sys.executable} -m rlhf --help | true"
    finished = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert finished.stderr == ""
