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
                turns = self.trip_count(instruction) if instruction.opcode == "while" else 1
                keys = ("body",) if instruction.opcode == "while" else BODIES.get(instruction.opcode, ("calls",))
                for callee in instruction.called(*keys):
                    if callee in self.computations:
                        visit(callee, times * turns)

        visit(self.entry, 1)
        return dict(counts)

    def trip_count(self, loop: Instruction) -> int:
        """Turns of a `while`: what the compiler has written beside it, else the largest number that its condition holds.

        The second over what a turn adds to the counter: a loop whose turns the compiler has put together in pairs adds 2.
        """
        if known := KNOWN_TRIPS.search(loop.attributes):
            return int(known.group(1))
        (condition,), (body,) = loop.called("condition"), loop.called("body")
        return math.ceil(max([1, *self._integers(condition)]) / self._stride(condition, body))

    def _stride(self, condition: str, body: str) -> int:
        """What a turn adds to the number that the condition looks at; 1 where that cannot be read."""
        compared = re.findall(
            r"index=(\d+)",
            " ".join(each.attributes for each in self.computations[condition] if each.opcode == "get-tuple-element"),
        )
        turn = self.computations[body]
        root = next(each for each in turn if each.is_root)
        if not compared or root.opcode != "tuple":
            return 1
        added, value = 0, turn.operands(root)[int(compared[0])]
        while value.opcode in ("add", "copy"):
            operands = turn.operands(value)
            added += sum(int(each.arguments) for each in operands if each.opcode == "constant")
            value = next((each for each in operands if each.opcode != "constant"), root)
        return added or 1

    def _integers(self, name: str) -> Iterator[int]:
        for instruction in self.computations[name]:
            if instruction.opcode == "constant" and re.fullmatch(r"\d+", instruction.arguments):
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
