"""Which keys a configuration has: a walk over frozen dataclasses, their types, defaults and documented attributes.

A *dotted key* such as `optimizer.learning_rate` names one field of a tree of dataclasses. A field is a branch of the tree if its
type is a dataclass (`Model`, `Model | None`) or a mapping from names to something (`dict[str, Source]`); otherwise it is a leaf.
"""

import difflib
import types
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import DocstringStyle
from docstring_parser import parse as parse_docstring

from rlhf.errors import UserError

NAME = "NAME"  # stands for any name in the dotted keys of a mapping: `sources.NAME.path`


@dataclass(frozen=True)
class ConfigKey:
    """One field somewhere in a tree of configuration dataclasses.

    Attributes:
        name: dotted key.
        annotation: its type.
        default: what it is when nobody sets it; `dataclasses.MISSING` if it must be set.
        help: its line in the "Attributes:" section of the dataclass; empty if it has none.
    """

    name: str
    annotation: Any
    default: Any
    help: str


def members(annotation: Any) -> tuple[Any, ...]:
    """The types a value may have: the parts of a union, or the one type."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def accepts_none(annotation: Any) -> bool:
    """Whether `null` is a value of this type."""
    return any(member in (type(None), None, Any) for member in members(annotation))


def section_class(annotation: Any) -> type | None:
    """The dataclass among the types of a field, or None."""
    return next((member for member in members(annotation) if isinstance(member, type) and is_dataclass(member)), None)


def mapping_value_type(annotation: Any) -> Any | None:
    """`X` for a field of type `dict[str, X]`, or None."""
    return next((get_args(m)[1] for m in members(annotation) if get_origin(m) is dict and get_args(m)[0] is str), None)


def is_branch(annotation: Any) -> bool:
    """Whether keys may be set below this field."""
    return section_class(annotation) is not None or mapping_value_type(annotation) is not None


def type_name(annotation: Any) -> str:
    """How a type is spelt for people: `int | null`."""
    if annotation in (None, type(None)):
        return "null"
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(annotation)))}"
    if len(parts := members(annotation)) > 1:
        return " | ".join(type_name(part) for part in parts)
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation.__name__
    return str(annotation).replace("typing.", "")


@cache
def field_types(section: type) -> dict[str, Any]:
    """Field name → resolved type, in the order of the fields."""
    hints = get_type_hints(section)
    return {field.name: hints[field.name] for field in fields(section)}


@cache
def field_help(section: type) -> dict[str, str]:
    """Field name → its documentation, from the docstrings of the dataclass and of those it inherits from."""
    documented: dict[str, str] = {}
    for parent in reversed(section.__mro__):
        for parameter in parse_docstring(parent.__doc__ or "", style=DocstringStyle.GOOGLE).params:
            documented[parameter.arg_name] = " ".join((parameter.description or "").split())
    return documented


def field_defaults(section: type) -> dict[str, Any]:
    """Field name → default value, or `dataclasses.MISSING`."""
    return {
        field.name: field.default_factory() if field.default_factory is not MISSING else field.default
        for field in fields(section)
    }


def child_type(annotation: Any, name: str) -> Any | None:
    """Type of the field `name` below a branch; None if there is no such field."""
    if (section := section_class(annotation)) is not None:
        return field_types(section).get(name)
    return mapping_value_type(annotation)


def config_keys(section: type, prefix: str = "", defaults: Any = None) -> Iterator[ConfigKey]:
    """Every dotted key of a configuration, branches before what is below them.

    Args:
        section: a dataclass.
        prefix: dotted key of the section itself, ending in a dot unless empty.
        defaults: an instance whose values are the defaults; None for those of the class.
    """
    class_defaults = field_defaults(section)
    for name, annotation in field_types(section).items():
        default = class_defaults[name] if defaults is None else getattr(defaults, name)
        key = ConfigKey(prefix + name, annotation, default, field_help(section).get(name, ""))
        yield key
        if (child := section_class(annotation)) is not None:
            yield from config_keys(child, f"{key.name}.", default if isinstance(default, child) else None)
        elif (child := section_class(mapping_value_type(annotation))) is not None:
            yield from config_keys(child, f"{key.name}.{NAME}.")


def nearest_key(wrong: str, section: type) -> str | None:
    """The valid dotted key that is most like a wrong one, or None if none is near.

    The last part counts by itself too, so that a key put at the wrong depth (`kl_coef` for `ppo.kl_coef`) is found.
    """
    last = wrong.rpartition(".")[2]

    def likeness(name: str) -> float:
        whole = difflib.SequenceMatcher(None, wrong, name).ratio()
        return max(whole, 0.95 * difflib.SequenceMatcher(None, last, name.rpartition(".")[2]).ratio() + 0.05 * whole)

    names = [_with_names_of(wrong, key.name) for key in config_keys(section)]
    best = max(names, key=likeness, default=None)
    return best if best is not None and likeness(best) >= 0.7 else None


def _with_names_of(wrong: str, name: str) -> str:
    """`sources.NAME.path` with NAME as it stands in a wrong key of the same depth, `sources.wiki.pth`."""
    parts, given = name.split("."), wrong.split(".")
    if len(parts) != len(given):
        return name
    return ".".join(own if part == NAME else part for part, own in zip(parts, given, strict=True))


def unknown_key(wrong: str, section: type, place: str) -> UserError:
    """The error for a key that the configuration does not have: where it stands and what it might have been."""
    near = nearest_key(wrong, section)
    fix = f"did you mean {near}?" if near else f"valid keys are: {', '.join(field_types(section))}."
    return UserError(f"{place}: unknown key {wrong}", fix=fix)
