"""What a configuration can hold, for people: the list of keys behind `--help` and the documented YAML of `--print_config`."""

import argparse
import json
from dataclasses import MISSING
from typing import Any, Literal, get_args, get_origin

import yaml

from rlhf.config_files import config_dict
from rlhf.config_keys import (
    NAME,
    ConfigKey,
    child_type,
    config_keys,
    field_help,
    is_branch,
    mapping_value_type,
    section_class,
    type_name,
)


def help_text(config_class: type, program: str, description: str, *, besides: type | None = None) -> str:
    """Every key of a configuration with its type, documentation and default, section by section.

    Args:
        config_class: a dataclass.
        program: how the command is called.
        description: what the command does.
        besides: a dataclass of keys that are the command's own, in no file.
    """
    parser = argparse.ArgumentParser(
        program,
        usage=f"{program} [--config FILE]... [--key=value]...",
        description=_escaped(description),
        add_help=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=40),
    )
    options = parser.add_argument_group("options")
    options.add_argument(
        "--config", metavar="FILE", help="YAML file of the keys below; several may be given, later wins"
    )
    options.add_argument(
        "--print_config", action="store_true", help="print the resolved configuration as YAML and exit"
    )
    options.add_argument("--help", action="store_true", help="print this and exit")
    sections = {"": parser.add_argument_group("keys")}
    for key in (*config_keys(config_class), *(() if besides is None else config_keys(besides))):
        if is_branch(key.annotation):
            sections[key.name] = parser.add_argument_group(key.name, _escaped(_section_description(key)))
        else:
            section = sections[_nearest_section(key.name, sections)]
            section.add_argument(
                f"--{key.name}", metavar=_metavar(key.annotation), help=_escaped(_leaf_description(key))
            )
    return parser.format_help()


def _nearest_section(name: str, sections: dict[str, Any]) -> str:
    """The longest section name that a dotted key lies in."""
    while name not in sections:
        name = name.rpartition(".")[0]
    return name


def _section_description(key: ConfigKey) -> str:
    """What a section is, and what it is when nobody sets it."""
    if section_class(key.annotation) is not None:
        how = f"YAML file, or --{key.name}.KEY=VALUE"
    elif is_branch(mapping_value_type(key.annotation)):
        how = f"by {NAME}: --{key.name}.{NAME}.KEY=VALUE"
    else:
        how = f"by {NAME}: --{key.name}.{NAME}={_metavar(mapping_value_type(key.annotation))}"
    return f"{key.help} ({how}{'; default: null' if key.default is None else ''})".strip()


def _leaf_description(key: ConfigKey) -> str:
    """What a key is, and its default."""
    return f"{key.help} ({'required' if key.default is MISSING else f'default: {_spelt(key.default)}'})".strip()


def _metavar(annotation: Any) -> str:
    """What stands for the value: the choices, or the type."""
    if get_origin(annotation) is Literal:
        return "{" + ",".join(map(str, get_args(annotation))) + "}"
    return type_name(annotation).upper()


def _spelt(value: Any) -> str:
    """A value as it is written in YAML, on one line."""
    if isinstance(value, str) and "\n" in value:
        return json.dumps(value, ensure_ascii=False)
    text = yaml.safe_dump(config_dict(value), default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("...\n").strip()


def _escaped(text: str) -> str:
    """Text in which argparse finds nothing to format."""
    return text.replace("%", "%%")


def documented_yaml(annotation: Any, values: Any, indent: str = "") -> str:
    """YAML text of resolved values, each leaf with its documentation beside it.

    A required key that is not set becomes a comment, so that the text can be saved, completed and used.

    Args:
        annotation: the dataclass, or the type of the section.
        values: what `resolve_config` returns, or a configuration.
        indent: spaces before every line.
    """
    section = section_class(annotation)
    lines = []
    for name, value in values.items():
        child = child_type(annotation, name)
        comment = field_help(section).get(name, "") if section else ""
        value = config_dict(value)
        if is_branch(child) and isinstance(value, dict) and value:
            lines.append(_commented(f"{indent}{name}:", comment))
            lines.append(documented_yaml(child, value, indent + "  "))
        elif value is MISSING:
            lines.append(f"{indent}# {name}:  # REQUIRED ({type_name(child)}): {comment}")
        else:
            lines.append(_commented(f"{indent}{name}: {_spelt(value)}", comment))
    return "\n".join(lines)


def _commented(text: str, comment: str) -> str:
    """A line of YAML with a comment, if there is one."""
    return f"{text}  # {comment}" if comment else text
