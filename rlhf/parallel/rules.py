"""From the logical axes of parameters and batches to the axes of the mesh, by one table.

Models name what an axis means and know of no mesh. Moving a kind of axis to other devices is a change of the table
(`rlhf.parallel.table`), nothing else; XLA adds the communication that follows from it.
"""

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from rlhf.errors import UserError
from rlhf.parallel.host_arrays import put
from rlhf.parallel.table import mesh_axes_of


def partition_spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """The mesh axes for a tuple of logical axes; None stays whole."""
    return _spec(() if axis is None else mesh_axes_of(axis) for axis in axes)


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """The sharding of every array in a pytree of variables.

    A variable is sharded by the logical axes in its metadata. An optimizer state made by optax from a `nnx.State` holds
    variables with the same metadata, so its moments are sharded as their parameters are; what has no axes, or (factored
    moments) not as many as dimensions, is kept whole on every device, and so is a vector that the mesh does not divide.

    Args:
        state: pytree of arrays, or of shapes, with `nnx.Variable`s at some of its nodes: a model's state, an optimizer
            state, a train state.
        mesh: the mesh.

    Returns:
        The same pytree with a `NamedSharding` in the place of each array.

    Raises:
        UserError: a mesh axis does not divide an axis of a parameter.
    """

    def sharding(path, node):
        if not isinstance(node, nnx.Variable):
            return NamedSharding(mesh, PartitionSpec())
        return node.replace(
            NamedSharding(mesh, _variable_spec(node, mesh, jax.tree_util.keystr(path, simple=True, separator=".")))
        )

    return jax.tree_util.tree_map_with_path(sharding, state, is_leaf=lambda node: isinstance(node, nnx.Variable))


def shard_state(state: Any, mesh: Mesh) -> Any:
    """Puts a pytree of variables on the mesh; see `state_shardings`."""
    return jax.tree.map(put, state, state_shardings(state, mesh))


def laid_out(shapes: Any, mesh: Mesh) -> Any:
    """The shapes of a pytree of variables with the shardings that `shard_state` would give them, without any values."""
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh),
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch: its leading axis divided as rows are, its time axis, where it has one, left to XLA."""
    return NamedSharding(mesh, partition_spec(("batch",)))


def constrain(array: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """Tells XLA how an activation is to lie on the mesh that `jax.set_mesh` has set; without one, does nothing.

    Left to itself, XLA spreads the sharding of the parameters to the activations, and splits the residual stream where the
    batch should have been. An axis that the mesh does not divide is kept whole.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return array
    return jax.lax.with_sharding_constraint(array, fitting_spec(array.shape, axes))


def parts_of(axis: str, mesh: Mesh | None = None) -> int:
    """Into how many parts a mesh, by default the one that `jax.set_mesh` has set, divides a logical axis; 1 without a mesh."""
    return _parts(mesh_axes_of(axis), jax.sharding.get_abstract_mesh() if mesh is None else mesh)


def keys_of(axis: str) -> str:
    """The config keys that set how many parts a logical axis has, for messages: `mesh.data x mesh.fsdp`."""
    return _keys(mesh_axes_of(axis))


def gather_over(mesh_axis: str, state: nnx.State, product_dtype: DTypeLike | None = None) -> nnx.State:
    """Tells XLA to put a model's arrays together over one axis of the mesh that is set; the other axes stay as they are.

    Args:
        mesh_axis: "fsdp", for example.
        state: as for `state_shardings`, inside a compiled program.
        product_dtype: to which kernels are cast before they are sent, as they would be where they are used; None for as they are.
    """

    def gathered(path: tuple, variable: nnx.Variable) -> nnx.Variable:
        axes, value = variable.get_metadata("axes", None), variable.get_value()
        if axes is None or len(axes) != variable.ndim:
            return variable
        if product_dtype is not None and str(path[-1]).endswith("kernel"):
            value = value.astype(product_dtype)
        if jax.sharding.get_abstract_mesh().empty:
            return variable.replace(value)
        kept = [[name for name in _names(entry) if name != mesh_axis] for entry in fitting_spec(value.shape, axes)]
        return variable.replace(jax.lax.with_sharding_constraint(value, _spec(kept)))

    return nnx.from_flat_state((path, gathered(path, variable)) for path, variable in nnx.to_flat_state(state))


def fitting_spec(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> PartitionSpec:
    """The mesh axes for the logical ones of an array, where the mesh that has been set divides them; elsewhere it stays whole."""
    mesh = jax.sharding.get_abstract_mesh()
    return PartitionSpec(
        *(
            entry if size % _parts(_names(entry), mesh) == 0 else None
            for size, entry in zip(shape, partition_spec(axes), strict=True)
        )
    )


def _spec(names: Iterable[Sequence[str]]) -> PartitionSpec:
    """Of the mesh axes of each axis; one is spelt by its name, as JAX does where it reports a layout."""
    return PartitionSpec(*(tuple(part) if len(part) > 1 else part[0] if part else None for part in names))


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes in the entry of a `PartitionSpec`."""
    return (entry,) if isinstance(entry, str) else entry or ()


def _parts(names: Iterable[str], mesh: Mesh | AbstractMesh) -> int:
    return prod(mesh.shape.get(name, 1) for name in names)  # a mesh that is not set has no axes


def _keys(names: Iterable[str]) -> str:
    return " x ".join(f"mesh.{name}" for name in names)


def _variable_spec(variable: nnx.Variable, mesh: Mesh, path: str) -> PartitionSpec:
    axes = variable.get_metadata("axes", None)
    shape = variable.shape
    if axes is None or len(axes) != len(shape):
        return PartitionSpec()
    spec = partition_spec(axes)
    for axis, entry, size in zip(axes, spec, shape, strict=True):
        parts = _parts(_names(entry), mesh)
        if size % parts == 0:
            continue
        if sum(name != "layers" for name in axes) == 1:
            return PartitionSpec()
        fitting = ", ".join(str(count) for count in range(1, parts + 1) if size % count == 0)
        keys = _keys(_names(entry))
        raise UserError(
            f"{keys} = {parts} does not divide the axis {axis!r} of {path}, whose size is {size}",
            fix=f"set {keys} to one of {fitting}, choose another size, or change mesh.rules.{axis}.",
        )
    return spec
