"""Every key of every real command stands in its --help with a line of documentation, and no line documents a key that is gone."""

import importlib
from dataclasses import fields, is_dataclass

import pytest
from docstring_parser import DocstringStyle
from docstring_parser import parse as parse_docstring

from rlhf import cli
from rlhf.config_keys import config_keys, is_branch, section_class

# `rlhf compile` takes the configuration of the stage that it compiles, and prints help of its own.
COMMANDS = [command for command in cli.STAGES if command != "compile"]


def config_of(command: str) -> type:
    return importlib.import_module(cli.STAGES[command][0]).Config


def sections(config_class: type) -> set[type]:
    """The dataclass itself and those of all its sections."""
    below = {section_class(key.annotation) for key in config_keys(config_class)}
    return {config_class, *(section for section in below if section is not None)}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_key_with_its_documentation(command, capsys):
    assert cli.main([command, "--help"]) == 0
    text = "".join(capsys.readouterr().out.split())
    for key in config_keys(config_of(command)):
        assert key.help, f"{key.name} has no documentation"
        assert (f"{key.name}:" if is_branch(key.annotation) else f"--{key.name}") in text
        assert "".join(key.help.split()) in text, key.name


@pytest.mark.parametrize("command", COMMANDS)
def test_no_documentation_is_left_of_a_key_that_is_gone(command):
    for section in sections(config_of(command)):
        assert is_dataclass(section)
        documented = {
            entry.arg_name for entry in parse_docstring(section.__doc__ or "", style=DocstringStyle.GOOGLE).params
        }
        assert documented == {field.name for field in fields(section)}, section


@pytest.mark.parametrize("command", COMMANDS)
def test_the_printed_configuration_can_be_read_back(command, capsys, tmp_path):
    assert cli.main([command, "--print_config"]) == 0
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert cli.main([command, f"--config={tmp_path}/config.yaml", "--print_config"]) == 0
    assert capsys.readouterr().out == (tmp_path / "config.yaml").read_text(encoding="utf-8")
