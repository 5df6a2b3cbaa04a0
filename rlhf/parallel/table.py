"""The table of rules, from the logical axes of arrays to the axes of the mesh: the usual one, and the one that is in effect.

A configuration may change lines of it (`mesh.rules`). The changed table is in effect inside a `with`, for the thread that entered
it, as a mesh is; `jax.jit` counts it among what a program depends on, so that programs of two tables are never mixed up.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

import jax

from rlhf.errors import UserError

MeshAxes = str | Sequence[str] | None
"""How a configuration spells what divides an axis: one axis of the mesh, several, or None, which leaves it whole."""

MESH_AXES = ("data", "fsdp", "tensor", "sequence")
RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "time": ("sequence",),
    "layers": (),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "residual": (),  # vectors along the residual stream, too small to be worth a gather
}
"""Logical axis → what divides it, the first outermost; nothing leaves it whole."""
ARRAYS = (
    ("layers", "embed", "heads", "head_dim"),
    ("layers", "embed", "kv_heads", "head_dim"),
    ("layers", "embed", "mlp"),
    ("layers", "residual"),
    ("vocab", "embed"),
    ("batch", "time", "heads"),
    ("batch", "time", "kv_heads"),
)
"""Logical axes that an array has together, parameters first, then activations; no array has more than those of one line."""

_in_effect = jax.make_user_context(tuple(RULES.items()))


def changed_table(changes: Mapping[str, MeshAxes]) -> dict[str, tuple[str, ...]]:
    """`RULES` with some of its lines changed.

    Args:
        changes: logical axis → what divides it from now on.

    Raises:
        UserError: there is no such logical axis, no such axis of the mesh, or two axes of one array would lie on the same.
    """
    for axis, mesh_axes in changes.items():
        if axis not in RULES:
            raise UserError(f"mesh.rules: arrays have no axis {axis!r}", fix=f"choose from {', '.join(RULES)}.")
        if unknown := [name for name in _names(mesh_axes) if name not in MESH_AXES]:
            raise UserError(
                f"mesh.rules.{axis}: the mesh has no axis {unknown[0]!r}",
                fix=f"choose one or several of {', '.join(MESH_AXES)}, or null to keep {axis} whole.",
            )
    table = {**RULES, **{axis: _names(mesh_axes) for axis, mesh_axes in changes.items()}}
    for axes in ARRAYS:
        _refuse_sharing(axes, table)
    return table


def rules_changed(changes: Mapping[str, MeshAxes]) -> AbstractContextManager[None]:
    """A context in which some lines of `RULES` are changed; see `changed_table`."""
    return _in_effect(tuple(changed_table(changes).items()))


def mesh_axes_of(axis: str) -> tuple[str, ...]:
    """The axes of the mesh that divide a logical axis by the table in effect; empty if it stays whole."""
    return dict(_in_effect.value)[axis]


def by_its_rules(run: Callable[..., Any]) -> Callable[..., Any]:
    """A stage's `run`, with the rules that its configuration changes in effect (`config.mesh.rules`)."""

    @wraps(run)
    def run_by_its_rules(config: Any, *arguments: Any, **named: Any) -> Any:
        with rules_changed(config.mesh.rules):
            return run(config, *arguments, **named)

    return run_by_its_rules


def _names(mesh_axes: MeshAxes) -> tuple[str, ...]:
    return (mesh_axes,) if isinstance(mesh_axes, str) else tuple(mesh_axes or ())


def _refuse_sharing(axes: tuple[str, ...], table: Mapping[str, tuple[str, ...]]) -> None:
    used = [(name, axis) for axis in axes for name in table[axis]]
    for name in MESH_AXES:
        divided = [axis for other, axis in used if other == name]
        if len(divided) < 2:
            continue
        free = [other for other in MESH_AXES if other not in dict(used)]
        raise UserError(
            f"mesh.rules: {name} would divide one array twice, by {' and by '.join(divided)}",
            fix=f"leave {name} in one place of {', '.join(f'mesh.rules.{axis}' for axis in dict.fromkeys(divided))},"
            f" and set the other to {' or '.join(['null', *free])}.",
        )
