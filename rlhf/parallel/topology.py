"""Accelerators that are not there, as a compiler sees them.

TPUs come from the package libtpu, whose compiler runs on any computer. That of GPUs needs a GPU, so as many virtual CPU devices
stand in for them: a program is divided over them in the same way, and what the CPU's compiler makes of each part is an estimate.
"""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import jax
from jax.experimental import topologies

from rlhf.errors import UserError
from rlhf.parallel.chips import CHIPS, GPUS, Chip

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
# Nobody runs the programs that CPU devices are to compile, so they need not be quick. The passes that are left out make 32-bit
# copies of 16-bit numbers before they are multiplied, which a GPU does not.
STAND_IN_OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_disable_hlo_passes": "change-op-data-type,operand_upcaster",
}


@dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
        name: as "v5e:4x4" or "h100:8".
        chip: what one of them can do.
        devices: to make a mesh of; nothing is put on them.
        is_stood_in_for: whether the devices are others, whose compiler gives an estimate of what is asked.
        compiler_options: to compile with.
    """

    name: str
    chip: Chip
    devices: list[jax.Device]
    is_stood_in_for: bool = False
    compiler_options: Mapping[str, str | int | bool] = field(default_factory=dict)


def describe_topology(name: str) -> Topology:
    """The devices of a name: a TPU generation, a colon and the number of chips along each axis, or a GPU, a colon and how many.

    Raises:
        UserError: there is nothing of this name, libtpu is not installed, or this process has begun with too few CPU devices.
    """
    kind, _, grid = name.partition(":")
    if kind in GPUS and re.fullmatch(r"[1-9]\d*", grid):
        return _gpus(name, GPUS[kind], int(grid))
    if kind in CHIPS and re.fullmatch(r"\d+(x\d+){1,2}", grid):
        return _slice(name, kind)
    raise UserError(
        f"topology is {name!r}",
        fix=f"write a generation ({', '.join(CHIPS)}), a colon and the grid of chips, as v5e:4x4 or v5p:4x4x4;"
        f" or a GPU ({', '.join(GPUS)}), a colon and how many, as h100:8.",
    )


def _slice(name: str, generation: str) -> Topology:
    for variable, value in NO_TPU_HERE.items():
        os.environ.setdefault(variable, value)
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name, **WHOLE_CHIPS.get(generation, {}))
    except Exception as error:
        if "not installed" in str(error):
            raise UserError(
                f"topology {name}: the compiler for TPUs is not installed",
                fix="pip install 'rlhf[tpu]'.",
            ) from error
        raise UserError(
            f"topology {name}: {error}", fix="choose a grid that the generation has, as v5e:4x4."
        ) from error
    return Topology(name, CHIPS[generation], list(described.devices))


def _gpus(name: str, gpu: Chip, count: int) -> Topology:
    if count > gpu.node.devices and count % gpu.node.devices:
        raise UserError(
            f"topology {name}: {count} GPUs do not fill nodes of {gpu.node.devices}",
            fix=f"choose up to {gpu.node.devices} GPUs, or a multiple of it.",
        )
    with suppress(RuntimeError):  # JAX has begun: there are as many devices as there are
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(
            f"topology {name}: this process has {len(devices)} CPU devices to stand in for GPUs",
            fix="compile in a process of its own, before it computes anything.",
        )
    return Topology(name, gpu, devices[:count], is_stood_in_for=True, compiler_options=STAND_IN_OPTIONS)
