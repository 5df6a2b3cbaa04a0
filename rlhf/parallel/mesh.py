"""The devices as a grid with named axes."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from math import prod

import jax
from jax.sharding import AxisType, Mesh

from rlhf.errors import UserError


@dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each axis of the mesh; one axis may be -1, for as many as are left.

    Attributes:
        data: copies of the model, each with a part of the batch.
        fsdp: parts of parameters and optimizer state, each also with a part of the batch.
        tensor: parts of heads, feed-forward and vocabulary.
        sequence: parts of the time axis of a batch.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1

    def __post_init__(self):
        sizes = astuple(self)
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise UserError(
                f"mesh: expected positive sizes, at most one of them -1, found {_describe(self)}",
                fix="set the size of every axis, or leave data at -1 for what is left.",
            )


def make_mesh(config: MeshConfig = MeshConfig(), devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Lays the devices out as a mesh.

    A single process may use fewer devices than there are, by setting every size.

    Args:
        config: sizes of the axes.
        devices: which; None for all devices of all processes.

    Raises:
        UserError: the sizes do not fit the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = list(astuple(config))
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
    names = tuple(field.name for field in fields(config))
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(names), devices=devices)


def _describe(config: MeshConfig) -> str:
    return ", ".join(f"{field.name}={getattr(config, field.name)}" for field in fields(config))
