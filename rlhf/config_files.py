"""Configurations from YAML files and `--a.b=value` overrides, and back to YAML.

Frozen dataclasses are the only source of truth: this module reads assignments (dotted key, value, the place it stands at), checks
each against the type of its field, applies them in order (a later one wins) and builds the dataclass. A section may name another
YAML file instead of spelling its keys out:

    model: models/tiny.yaml      # beside the file that says so, or else in the working directory
    optimizer: {learning_rate: 1.0e-3}

Such a file sets the section anew; a mapping changes only the keys it names.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from rlhf.config_keys import (
    accepts_none,
    child_type,
    field_defaults,
    field_types,
    is_branch,
    mapping_value_type,
    members,
    section_class,
    type_name,
    unknown_key,
)
from rlhf.errors import UserError

C = TypeVar("C")


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number (YAML 1.1 wants 1.0e-3) and a key may stand only once in a mapping."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
# A date is text here: no field is a date, and `run_name: 2025-01-31` means what it says.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


class Section(Enum):
    """What may happen to a section besides a value being set in it."""

    OPENED = "keys follow that change it"
    RENEWED = "a file follows that replaces what was set so far"


@dataclass(frozen=True)
class Assignment:
    """One value for one key, in the order in which they take effect.

    Attributes:
        key: parts of the dotted key.
        value: converted to the type of the field, or a `Section` mark.
    """

    key: tuple[str, ...]
    value: Any


def load_config(config_class: type[C], files: Sequence[str | Path] = (), overrides: Iterable[str] = ()) -> C:
    """Build a configuration.

    Args:
        config_class: a frozen dataclass.
        files: YAML files; where two set the same key the later wins.
        overrides: `a.b=value` each (leading dashes allowed), after all files; the value is read as YAML.

    Returns:
        An instance of `config_class`.

    Raises:
        UserError: an unknown key, a value of the wrong type, a required key that is not set, a file that cannot be read.
            The message says where (file and line, or command line) and, for an unknown key, which valid one is nearest.
    """
    resolved = resolve_config(config_class, files, overrides)
    if missing := list(_missing(resolved, ())):
        raise UserError(
            f"required keys are not set: {', '.join(missing)}",
            fix=f"set them in a configuration file or on the command line, as in --{missing[0]}=VALUE.",
        )
    return _construct(config_class, resolved, ())


def resolve_config(
    config_class: type, files: Sequence[str | Path] = (), overrides: Iterable[str] = ()
) -> dict[str, Any]:
    """Every key with its value, as nested dictionaries; `dataclasses.MISSING` where a required one is not set.

    Arguments and errors as for `load_config`.
    """
    tree: dict[str, Any] = {}
    for assignment in _assignments(config_class, files, overrides):
        _assign(tree, assignment)
    return _resolve(config_class, tree, None)


def save_config(config: Any, path: str | Path) -> None:
    """Write a configuration, with every key resolved, to a YAML file from which `load_config` builds an equal object."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config_dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def config_dict(config: Any) -> Any:
    """A configuration as dictionaries, lists and scalars, ready for YAML, JSON or an experiment tracker."""
    if is_dataclass(config):
        return {field.name: config_dict(getattr(config, field.name)) for field in fields(config)}
    if isinstance(config, dict):
        return {name: config_dict(value) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return [config_dict(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def _assignments(config_class: type, files: Sequence[str | Path], overrides: Iterable[str]) -> Iterator[Assignment]:
    """All assignments, files first."""
    for file in files:
        yield from _from_file(config_class, config_class, Path(file), ())
    for override in overrides:
        name, equals, text = override.lstrip("-").partition("=")
        if not equals:
            raise UserError(f"command line: --{name} has no value", fix=f"write --{name}=VALUE.")
        yield from _from_text(config_class, tuple(name.split(".")), text)


def _from_file(root: type, annotation: Any, path: Path, key: tuple[str, ...]) -> Iterator[Assignment]:
    """The assignments of one YAML file that holds the section `key`, of type `annotation`, of a `root` configuration."""
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"configuration file {path}: {error.strerror}", fix="check the name and the folder.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"configuration file {path} is not YAML: {error}", fix="mend the line it names.") from error
    if node is None:
        return
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{path}: expected keys and values, found {node.value!r}", fix="write `key: value` lines.")
    yield from _from_node(root, annotation, node, key, path)


def _from_node(
    root: type, annotation: Any, node: yaml.Node, key: tuple[str, ...], source: Path | None
) -> Iterator[Assignment]:
    """The assignments that a YAML node makes at and below `key`; `source` is its file, None for the command line."""
    place = "command line" if source is None else f"{source}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode) and is_branch(annotation):
        yield Assignment(key, Section.OPENED)
        for name, child in _entries(node, place):
            if (type_below := child_type(annotation, name)) is None:
                line = "" if source is None else f"{source}:{child.start_mark.line + 1}"
                raise unknown_key(".".join((*key, name)), root, line or place)
            yield from _from_node(root, type_below, child, (*key, name), source)
        return
    value = _value(node)
    if value is None and is_branch(annotation) and not accepts_none(annotation):
        yield Assignment(key, Section.OPENED)  # `data:` with nothing below it
    elif isinstance(value, str) and is_branch(annotation) and str not in members(annotation):
        yield Assignment(key, Section.RENEWED)
        yield from _from_file(root, annotation, _named_file(value, source, ".".join(key), place), key)
    else:
        yield Assignment(key, _checked(annotation, value, ".".join(key), place))


def _from_text(root: type, key: tuple[str, ...], text: str) -> Iterator[Assignment]:
    """The assignments of one override: `text` read as YAML, or as it stands where the field takes text."""
    annotation = root
    for name in key:
        annotation = child_type(annotation, name)
        if annotation is None:
            raise unknown_key(".".join(key), root, "command line")
    try:
        null = text == "None" and accepts_none(annotation)  # how wandb sweeps spell it
        node = yaml.compose("null" if null or not text else text, _Loader)
        value = _value(node)
    except yaml.YAMLError:
        node, value = yaml.ScalarNode("tag:yaml.org,2002:str", text), text
    if isinstance(value, str) or not _accepts(annotation, value):
        node = yaml.ScalarNode("tag:yaml.org,2002:str", text, node.start_mark, node.end_mark)
    yield from _from_node(root, annotation, node, key, None)


def _entries(node: yaml.MappingNode, place: str) -> Iterator[tuple[str, yaml.Node]]:
    """Names and values of a mapping, merge keys (`<<`) taken in; a name that stands twice is an error."""
    names = [name.value for name, _ in node.value if name.tag != "tag:yaml.org,2002:merge"]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{place}: {', '.join(sorted(repeated))} stands twice in one section", fix="keep one of them.")
    _Loader("").flatten_mapping(node)
    merged = {name.value: child for name, child in node.value}
    yield from merged.items()


def _value(node: yaml.Node) -> Any:
    """A YAML node as Python lists, dictionaries and scalars."""
    return _Loader("").construct_document(node)


def _named_file(name: str, source: Path | None, key: str, place: str) -> Path:
    """The file that a section names: beside the file that names it, or else in the working directory."""
    candidates = [Path(name)] if source is None else [source.parent / name, Path(name)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    looked = " or ".join(dict.fromkeys(str(candidate) for candidate in candidates))
    raise UserError(
        f"{place}: {key} names a configuration file that does not exist: looked for {looked}",
        fix=f"name an existing file, or write the keys of {key} in place.",
    )


def _convert(annotation: Any, value: Any) -> Any:
    """A value converted to the type of its field; ArgumentError or TypeError if it does not fit."""
    if value is None and not accepts_none(annotation):
        raise TypeError("null is not among its values")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=annotation)
    return parser.instantiate(parser.parse_object({"value": value})).value


def _accepts(annotation: Any, value: Any) -> bool:
    """Whether a value fits the type of a field."""
    if is_branch(annotation) and isinstance(value, dict):
        return True
    try:
        _convert(annotation, value)
    except (ArgumentError, TypeError):
        return False
    return True


def _checked(annotation: Any, value: Any, key: str, place: str) -> Any:
    """A value converted to the type of its field, or the error that says where it stands and what was expected."""
    try:
        return _convert(annotation, value)
    except (ArgumentError, TypeError) as error:
        spelt = "null" if value is None else repr(value)
        kind = "a section, or a file that holds it" if is_branch(annotation) else type_name(annotation)
        raise UserError(f"{place}: {key} should be {kind}, found {spelt}", fix=f"correct {key}.") from error


def _assign(tree: dict[str, Any], assignment: Assignment) -> None:
    """Put one assignment into the tree of what has been set so far."""
    if not assignment.key:
        return
    *above, name = assignment.key
    for part in above:
        if not isinstance(tree.get(part), dict):
            tree[part] = {}
        tree = tree[part]
    if assignment.value is Section.RENEWED:
        tree[name] = {}
    elif assignment.value is Section.OPENED:
        if not isinstance(tree.get(name), dict):
            tree[name] = {}
    else:
        tree[name] = assignment.value


def _resolve(annotation: Any, tree: Any, default: Any) -> Any:
    """What has been set, laid over the defaults: a dictionary for a section that is set, otherwise a value."""
    if not (is_branch(annotation) and isinstance(tree, dict)):
        return tree
    if (section := section_class(annotation)) is None:
        kept = default if isinstance(default, dict) else {}
        value_type = mapping_value_type(annotation)
        return {**kept, **{name: _resolve(value_type, value, kept.get(name)) for name, value in tree.items()}}
    defaults = vars(default) if isinstance(default, section) else field_defaults(section)
    resolved = {}
    for name, field_type in field_types(section).items():
        value = tree.get(name, defaults[name])
        if name not in tree and value is MISSING and is_branch(field_type) and not accepts_none(field_type):
            value = {}
        in_tree = name in tree or isinstance(value, dict)
        resolved[name] = _resolve(field_type, value, defaults[name]) if in_tree else value
    return resolved


def _missing(resolved: Any, key: tuple[str, ...]) -> Iterator[str]:
    """Dotted keys that are required and not set."""
    if resolved is MISSING:
        yield ".".join(key)
    elif isinstance(resolved, dict):
        for name, value in resolved.items():
            yield from _missing(value, (*key, name))


def _construct(annotation: Any, resolved: Any, key: tuple[str, ...]) -> Any:
    """Dataclasses from resolved dictionaries."""
    if not (is_branch(annotation) and isinstance(resolved, dict)):
        return resolved
    values = {name: _construct(child_type(annotation, name), value, (*key, name)) for name, value in resolved.items()}
    if (section := section_class(annotation)) is None:
        return values
    try:
        return section(**values)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{'.'.join(key) or 'configuration'}: {error}", fix="correct these keys.") from error
