"""What of a configuration must be equal for a run to be continued, and how to say what is not."""

from collections.abc import Mapping, Sequence
from typing import Any

MOST_LINES = 20


def fingerprint_differences(saved: Mapping, current: Mapping) -> list[str]:
    """One line for each configuration key whose value is not the same, as "key: checkpoint …, now …"."""
    before, after = _flatten(saved), _flatten(current)
    absent = "(absent)"
    return [
        f"{key}: checkpoint {before.get(key, absent)}, now {after.get(key, absent)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, absent) != after.get(key, absent)
    ]


def describe_differences(differences: Sequence[str]) -> str:
    """The lines, indented below a message; of very many only the first ones, and the number of the others."""
    more = len(differences) - MOST_LINES
    lines = [*differences[:MOST_LINES], *([f"and {more} more"] if more > 0 else [])]
    return "".join(f"\n    {line}" for line in lines)


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    return {
        key: value
        for name, branch in tree.items()
        for key, value in _flatten(branch, f"{prefix}.{name}" if prefix else str(name)).items()
    }
