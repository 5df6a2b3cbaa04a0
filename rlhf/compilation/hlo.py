"""Reads XLA's optimised HLO text: computations, instructions, shapes, and how often each computation runs.

XLA's own cost analysis counts the body of a loop once, and a model whose layers are a loop then seems to have one layer.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16}  # others have their size in their name
COMMENT = re.compile(r"/\*.*?\*/")
LEAF = re.compile(r"(\w+)\[([\d,<=]*)\](\{[^}]*\})?")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
NAME = re.compile(r"%([\w.\-]+)")
NUMBER = re.compile(r"\d+")
INDEX = re.compile(r"index=(\d+)")
KNOWN_TRIPS = re.compile(r'known_trip_count\\?"?:\{\\?"?n\\?"?:\\?"?(\d+)')


@dataclass(frozen=True)
class Shape:
    """An array.

    Attributes:
        dtype: XLA's name of it.
        dimensions: sizes.
        in_main_memory: False where the compiler keeps it in the chip's own fast memory (TPU memory space 1).
    """

    dtype: str
    dimensions: tuple[int, ...]
    in_main_memory: bool = True

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dimensions)

    @property
    def bytes(self) -> float:
        """Memory without padding."""
        digits = re.search(r"\d+", self.dtype)
        bits = BITS.get(self.dtype, int(digits.group()) if digits else 8)
        return self.size * bits / 8


@dataclass(frozen=True)
class Instruction:
    """One line of HLO.

    Attributes:
        name: without the percent sign.
        opcode: what it does.
        shapes: of the result; several for a tuple.
        operands: names.
        arguments: the text between the parentheses.
        attributes: the text behind them.
        is_root: whether it is its computation's result.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    is_root: bool

    @property
    def bytes(self) -> float:
        """Of the result."""
        return sum(shape.bytes for shape in self.shapes)

    def called(self, *keys: str) -> list[str]:
        """Names of the computations behind `key=%name` or `key={%a, %b}`."""
        pattern = rf"\b(?:{'|'.join(keys)})=(\{{[^}}]*\}}|%[\w.\-]+)"
        return [name for match in re.findall(pattern, self.attributes) for name in NAME.findall(match)]


@dataclass(frozen=True)
class Computation:
    """A list of instructions that runs as one."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """The instructions whose results an instruction reads."""
        return [self.instructions[name] for name in instruction.operands if name in self.instructions]


@dataclass(frozen=True)
class Program:
    """A whole HLO module.

    Attributes:
        computations: by name.
        entry: the one that runs.
    """

    computations: dict[str, Computation]
    entry: str

    def runs(self) -> dict[str, float]:
        """How often each computation runs when the program runs once, fused ones included; those that never do are left out.

        Of a conditional all branches count, of a loop with an early end all of its turns: the result is an upper bound.
        """
        counts: dict[str, float] = defaultdict(float)

        def visit(name: str, times: float) -> None:
            counts[name] += times
            for instruction in self.computations[name]:
                turns = self.trip_count(self.computations[name], instruction) if instruction.opcode == "while" else 1
                keys = ("body",) if instruction.opcode == "while" else BODIES.get(instruction.opcode, ("calls",))
                for callee in instruction.called(*keys):
                    if callee in self.computations:
                        visit(callee, times * turns)

        visit(self.entry, 1)
        return dict(counts)

    def trip_count(self, computation: Computation, loop: Instruction) -> int:
        """Turns of a `while`: what the compiler has written beside it, else the numbers from which and to which it counts.

        Over what a turn adds to the counter: a loop whose turns the compiler has put together in pairs adds 2.

        Args:
            computation: the one that the loop is in.
            loop: the loop.
        """
        if known := KNOWN_TRIPS.search(loop.attributes):
            return int(known.group(1))
        turns = self._limit(loop) - self._start(computation, loop)
        return math.ceil(max(1, turns) / self._stride(loop))

    def _limit(self, loop: Instruction) -> int:
        """The largest number that its condition holds."""
        return max([1, *self._integers(loop.called("condition")[0])])

    def _start(self, computation: Computation, loop: Instruction) -> int:
        """What its counter begins with: a number, or where the loop before it has come to; 0 where that cannot be read."""
        (carried,), counter = computation.operands(loop), self._counter(loop)
        if counter is None or carried.opcode != "tuple":
            return 0
        value = computation.operands(carried)[counter]
        while value.opcode == "copy":
            (value,) = computation.operands(value)
        if value.opcode == "constant" and NUMBER.fullmatch(value.arguments):
            return int(value.arguments)
        if value.opcode != "get-tuple-element":
            return 0
        (before,), index = computation.operands(value), int(INDEX.search(value.attributes).group(1))
        return self._limit(before) if before.opcode == "while" and index == self._counter(before) else 0

    def _counter(self, loop: Instruction) -> int | None:
        """Which of the carried values the condition looks at first."""
        condition = self.computations[loop.called("condition")[0]]
        compared = (INDEX.search(each.attributes) for each in condition if each.opcode == "get-tuple-element")
        return next((int(found.group(1)) for found in compared if found), None)

    def _stride(self, loop: Instruction) -> int:
        """What a turn adds to its counter; 1 where that cannot be read."""
        turn, counter = self.computations[loop.called("body")[0]], self._counter(loop)
        root = next(each for each in turn if each.is_root)
        if counter is None or root.opcode != "tuple":
            return 1
        added, value = 0, turn.operands(root)[counter]
        while value.opcode in ("add", "copy"):
            operands = turn.operands(value)
            added += sum(int(each.arguments) for each in operands if each.opcode == "constant")
            value = next((each for each in operands if each.opcode != "constant"), root)
        return added or 1

    def _integers(self, name: str) -> Iterator[int]:
        for instruction in self.computations[name]:
            if instruction.opcode == "constant" and NUMBER.fullmatch(instruction.arguments):
                yield int(instruction.arguments)
            for callee in instruction.called("calls", "to_apply"):
                yield from self._integers(callee)


BODIES = {
    "call": ("to_apply",),
    "conditional": ("branch_computations", "true_computation", "false_computation"),
}


def parse(text: str) -> Program:
    """Reads the text of an HLO module, as `compiled.as_text()` gives it.

    Raises:
        ValueError: there is no entry computation in it.
    """
    computations: dict[str, Computation] = {}
    entry, current = None, None
    for raw in text.splitlines():
        line = COMMENT.sub("", raw).rstrip()
        if current is None:
            if header := HEADER.match(line):
                current = computations[header.group(2)] = Computation(header.group(2))
                entry = header.group(2) if header.group(1) else entry
        elif line == "}":
            current = None
        elif " = " in line:
            instruction = _instruction(line.strip())
            current.instructions[instruction.name] = instruction
    if entry is None:
        raise ValueError("the text has no ENTRY computation, so it is no HLO module")
    return Program(computations, entry)


def _instruction(line: str) -> Instruction:
    is_root = line.startswith("ROOT ")
    name, _, rest = line.removeprefix("ROOT ").partition(" = ")
    type_end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opcode_start = rest.index(" ", type_end - 1) + 1 if rest[type_end - 1] != " " else type_end
    opening = rest.index("(", opcode_start)
    closing = _closing(rest, opening)
    arguments = rest[opening + 1 : closing]
    return Instruction(
        name=name.lstrip("%"),
        opcode=rest[opcode_start:opening].strip(),
        shapes=tuple(_shapes(rest[:type_end])),
        operands=tuple(NAME.findall(arguments)),
        arguments=arguments.strip(),
        attributes=rest[closing + 1 :],
        is_root=is_root,
    )


def _closing(text: str, opening: int) -> int:
    """Position of the parenthesis that closes the one at `opening`."""
    depth = 0
    for position in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position
    raise ValueError(f"a parenthesis is not closed: {text[:200]}")


def _shapes(text: str) -> Iterator[Shape]:
    for dtype, sizes, layout in LEAF.findall(text):
        dimensions = tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size)
        yield Shape(dtype, dimensions, "S(1)" not in layout)
