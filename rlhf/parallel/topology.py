"""TPUs that are not there: their devices as a compiler sees them, from the package libtpu on any computer."""

import os
import re
from dataclasses import dataclass

import jax
from jax.experimental import topologies

from rlhf.errors import UserError
from rlhf.parallel.chips import CHIPS, Chip

# libtpu looks for the machine's TPU unless told what there is.
NO_TPU_HERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several compilers may run at a time; of a real TPU there can be one user only
}
# Both cores of a chip as one device, where there are two; the newer generations are so by themselves.
WHOLE_CHIPS = {"v4": {"chip_config_name": "megacore"}}


@dataclass(frozen=True)
class Topology:
    """A slice to compile for.

    Attributes:
        name: as "v5e:4x4".
        chip: what one of its chips can do.
        devices: to make a mesh of; nothing can be put on them.
    """

    name: str
    chip: Chip
    devices: list[jax.Device]


def describe_topology(name: str) -> Topology:
    """The slice of a name: generation, colon, number of chips along each axis.

    Raises:
        UserError: there is no such slice, or libtpu is not installed.
    """
    generation, _, grid = name.partition(":")
    if generation not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", grid):
        raise UserError(
            f"topology is {name!r}",
            fix=f"write a generation ({', '.join(CHIPS)}), a colon and the grid of chips, as v5e:4x4 or v5p:4x4x4.",
        )
    for variable, value in NO_TPU_HERE.items():
        os.environ.setdefault(variable, value)
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name, **WHOLE_CHIPS.get(generation, {}))
    except Exception as error:
        if "not installed" in str(error):
            raise UserError(
                f"topology {name}: the compiler for TPUs is not installed",
                fix="pip install 'rlhf[tpu]', or pip install libtpu.",
            ) from error
        raise UserError(
            f"topology {name}: {error}", fix="choose a grid that the generation has, as v5e:4x4."
        ) from error
    return Topology(name, CHIPS[generation], list(described.devices))
