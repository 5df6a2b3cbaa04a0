"""Compiles a lowered program and says what it needs and costs on the chip that it was lowered for."""

import re
import time
from dataclasses import dataclass
from math import prod
from typing import Any

import jax

from rlhf.compilation.costs import Costs, count_costs
from rlhf.compilation.hlo import parse
from rlhf.errors import UserError
from rlhf.parallel.chips import Chip
from rlhf.parallel.topology import Topology

# What the TPU compiler says when a program needs more memory than a chip has.
TOO_LARGE = re.compile(
    r"(?:Used|memory required for HLO temporaries) \(?(?P<used>[\d.]+[KMG])\)?"
    r" (?:of|exceeds available HBM) \(?(?P<capacity>[\d.]+[KMG])\)?"
)
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class Memory:
    """Of one chip, in bytes.

    Attributes:
        arguments: what lies there when the program begins, whether it reads it or not: parameters, optimizer state, batch.
        results: what it returns and does not write over its arguments.
        temporaries: what it needs meanwhile, its code included.
        peak: all of these.
        capacity: what a program can have of the chip's.
    """

    arguments: float | None
    results: float | None
    temporaries: float | None
    peak: float
    capacity: float

    @property
    def fits(self) -> bool:
        """Whether there is room for it."""
        return self.peak <= self.capacity


@dataclass(frozen=True)
class Estimate:
    """Of one program.

    Attributes:
        name: of the program.
        memory: of one chip.
        costs: of one run, on one chip; None for a program that does not fit and so was not finished.
        chip: what the chip can do.
        compile_seconds: how long it took to compile.
        is_stood_in_for: whether another compiler than that of the chip has laid out temporaries and fused operations, so that
            they, and traffic to main memory, are estimates.
    """

    name: str
    memory: Memory
    costs: Costs | None
    chip: Chip
    compile_seconds: float
    is_stood_in_for: bool = False

    @property
    def seconds(self) -> dict[str, float]:
        """The least time for each of arithmetic, memory, network and what leaves a node; the longest is the least time of a run."""
        node = self.chip.node
        return {
            "arithmetic": self.costs.flops / self.chip.flops,
            "memory": self.costs.memory_bytes / self.chip.memory_bandwidth,
            "network": self.costs.network_bytes / self.chip.network_bandwidth,
            **({} if node is None else {"between nodes": self.costs.bytes_between_nodes / node.bandwidth}),
        }

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(self.seconds, key=self.seconds.__getitem__)

    @property
    def utilisation(self) -> float:
        """Highest share of the chip's arithmetic that the program can use, if all go on at the same time."""
        return self.seconds["arithmetic"] / max(self.seconds.values())


def estimate(
    name: str, lowered: jax.stages.Lowered, topology: Topology, present: Any = None
) -> tuple[Estimate, jax.stages.Compiled | None]:
    """Compiles a program and reads what it costs.

    Args:
        name: of the program.
        lowered: for the devices of the topology.
        topology: what to compile for.
        present: shapes of all arrays that are in memory when it begins; None for those that it reads. While a policy samples, the
            optimizer's state and the other models do not go away, but a compiled program knows nothing of what it does not read.

    Returns:
        The estimate, and the compiled program, None where it does not fit the chip's memory.
    """
    chip, started = topology.chip, time.monotonic()
    try:
        compiled = lowered.compile(compiler_options=dict(topology.compiler_options))
    except jax.errors.JaxRuntimeError as error:
        memory = _memory_from_error(str(error))
        if memory is None:
            raise
        return Estimate(name, memory, None, chip, time.monotonic() - started), None
    seconds = time.monotonic() - started
    memory = _memory(compiled.memory_analysis(), chip, bytes_of_a_chip(present))
    in_node = chip.node and chip.node.devices
    costs = count_costs(parse(_text(name, compiled)), in_node, scatters_sums=topology.is_stood_in_for)
    return Estimate(name, memory, costs, chip, seconds, topology.is_stood_in_for), compiled


def bytes_of_a_chip(shapes: Any) -> float:
    """What a pytree of shapes, each laid out over a mesh, takes of one chip's memory; padding is not counted."""
    return sum(
        prod(leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(shapes)
    )


def _text(name: str, compiled: jax.stages.Compiled) -> str:
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"{name} was compiled, but what the compiler made of it cannot be read: {str(error).splitlines()[0]}",
            fix="install the compiler that belongs to this version of JAX: pip install 'rlhf[tpu]'.",
        ) from error


def _memory(analysis: Any, chip: Chip, present: float) -> Memory:
    arguments = max(analysis.argument_size_in_bytes, present)
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    temporaries = analysis.temp_size_in_bytes + analysis.generated_code_size_in_bytes
    return Memory(arguments, results, temporaries, arguments + results + temporaries, chip.usable_memory)


def _memory_from_error(message: str) -> Memory | None:
    """The compiler gives up at what is too much: temporaries alone, or everything together."""
    found = TOO_LARGE.search(message)
    if found is None:
        return None
    used, capacity = (float(found[name][:-1]) * UNITS[found[name][-1]] for name in ("used", "capacity"))
    temporaries = used if "HLO temporaries" in found[0] else None
    return Memory(None, None, temporaries, used, capacity)
