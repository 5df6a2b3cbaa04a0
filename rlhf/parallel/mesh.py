"""The devices as a grid with named axes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import gcd, prod

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from rlhf.errors import UserError
from rlhf.parallel.table import MESH_AXES, changed_table


@dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each axis of the mesh; one axis may be -1, for as many as are left.

    Where the devices lie in several slices (of TPUs) or nodes (of GPUs), whose network is slower than the one within, `data`
    goes from one to another, `fsdp` only where `data` does not suffice for that, and the others never.

    Attributes:
        data: copies of the model, each with a part of the batch.
        fsdp: parts of parameters and optimizer state, each also with a part of the batch.
        tensor: parts of heads, feed-forward and vocabulary.
        sequence: parts of the time axis of a batch.
        rules: lines of the table from axes of arrays to axes of the mesh that are to be other than usual (`rlhf.parallel.table`):
            `{vocab: fsdp, embed: null, mlp: [tensor, fsdp]}` divides the vocabulary over fsdp, leaves the residual stream's
            features whole, and divides the feed-forward features over both.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    rules: dict[str, str | list[str] | None] = field(default_factory=dict)

    def __post_init__(self):
        changed_table(self.rules)
        sizes = self.sizes
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise UserError(
                f"mesh: expected positive sizes, at most one of them -1, found {_describe(self)}",
                fix="set the size of every axis, or leave data at -1 for what is left.",
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the axes, in the order of `MESH_AXES`."""
        return tuple(getattr(self, name) for name in MESH_AXES)


def make_mesh(config: MeshConfig = MeshConfig(), devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Lays the devices out as a mesh.

    A single process may use fewer devices than there are, by setting every size.

    Args:
        config: sizes of the axes.
        devices: which; None for all devices of all processes.

    Raises:
        UserError: the sizes do not fit the number of devices, or the slices that these lie in.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = list(config.sizes)
    fixed = prod(size for size in sizes if size != -1)
    if -1 not in sizes and jax.process_count() == 1:
        devices = devices[:fixed]
    if len(devices) % fixed or (-1 not in sizes and fixed != len(devices)):
        raise UserError(
            f"mesh: {_describe(config)} needs {'a multiple of ' if -1 in sizes else ''}{fixed} devices, "
            f"found {len(devices)}",
            fix=f"choose sizes whose product {'divides' if -1 in sizes else 'is'} {len(devices)}.",
        )
    sizes = [len(devices) // fixed if size == -1 else size for size in sizes]
    types = (AxisType.Auto,) * len(MESH_AXES)
    slices = _slices(devices)
    if len(slices) == 1:
        return jax.make_mesh(sizes, MESH_AXES, axis_types=types, devices=devices)
    across = _sizes_across(sizes, slices)
    within = [size // parts for size, parts in zip(sizes, across, strict=True)]
    grids = [jax.make_mesh(within, MESH_AXES, axis_types=types, devices=part).devices for part in slices]
    return Mesh(_joined(grids, across), MESH_AXES, axis_types=types)


def _slices(devices: list[jax.Device]) -> list[list[jax.Device]]:
    """The devices by the slice that they lie in, which the devices of some platforms do not say: these are one slice."""
    parts: dict[int, list[jax.Device]] = {}
    for device in devices:
        parts.setdefault(getattr(device, "slice_index", 0), []).append(device)
    return [parts[index] for index in sorted(parts)]


def _sizes_across(sizes: list[int], slices: list[list[jax.Device]]) -> tuple[int, ...]:
    """Into how many parts each axis of the mesh is cut by the borders between slices: `data` first, `fsdp` for the rest."""
    found = f"mesh: {_describe(MeshConfig(*sizes))} on {len(slices)} slices or nodes"
    smallest, largest = min(map(len, slices)), max(map(len, slices))
    if smallest != largest:
        raise UserError(
            f"{found}, expected as many devices of each, found {smallest} to {largest}",
            fix="use slices or nodes of one size, and all devices of each.",
        )
    data, fsdp, *others = sizes
    of_data = gcd(data, len(slices))
    of_fsdp = len(slices) // of_data
    if fsdp % of_fsdp:
        raise UserError(
            f"{found} of {smallest} devices: only data, and for what it leaves fsdp, may go from one to another",
            fix=f"set mesh.data to a multiple of {len(slices)}, or mesh.fsdp where one of them is too small for the model, and"
            f" mesh.tensor x mesh.sequence to a divisor of {smallest}.",
        )
    return of_data, of_fsdp, *(1 for _ in others)


def _joined(grids: list[np.ndarray], across: tuple[int, ...]) -> np.ndarray:
    """One grid of devices from those of the slices; along an axis that crosses slices, a whole slice comes after another."""
    within = grids[0].shape
    axes = range(len(within))
    stacked = np.stack(grids).reshape(*across, *within)
    interleaved = stacked.transpose([place for axis in axes for place in (axis, axis + len(within))])
    return interleaved.reshape([parts * size for parts, size in zip(across, within, strict=True)])


def _describe(config: MeshConfig) -> str:
    return ", ".join(f"{name}={size}" for name, size in zip(MESH_AXES, config.sizes, strict=True))
