"""What a program reads from and writes to main memory: operands and results of its fusions, slices counted as slices."""

import re

from rlhf.compilation.hlo import Computation, Instruction, Program

# These move no data by themselves, or what they move is counted where it is used.
FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "call",
    "conditional",
    "after-all",
    "partition-id",
    "replica-id",
    "iota",
    "optimization-barrier",
}
# Within a fusion: a result that is an operand, and the beginning and end of a collective that goes on meanwhile.
PASSED_ON = ("tuple", "custom-call")
# Within a fusion a slice of these is a slice of their operand: nothing else of it is read.
SAME_VALUES = ("bitcast", "pad")
ASYNCHRONOUS_END = ("-done", "-update")


def memory_bytes(program: Program, runs: dict[str, float]) -> float:
    """Bytes read and written when the program runs once.

    Args:
        program: the program.
        runs: how often each of its computations runs.
    """
    fused = _fused(program)
    return sum(
        times
        * sum(_moved(program, program.computations[name], instruction) for instruction in program.computations[name])
        for name, times in runs.items()
        if name not in fused
    )


def _fused(program: Program) -> set[str]:
    """Computations whose inner results never reach main memory."""
    inside = {
        callee
        for computation in program.computations.values()
        for instruction in computation
        if instruction.opcode in ("fusion", "custom-call")
        for callee in instruction.called("calls", "called_computations")
    }
    while True:
        further = {
            callee
            for name in inside
            if name in program.computations
            for instruction in program.computations[name]
            for callee in instruction.called("calls", "to_apply", "body")
        } - inside
        if not further:
            return inside
        inside |= further


def _moved(program: Program, computation: Computation, instruction: Instruction) -> float:
    """Bytes of main memory that an instruction reads and writes; slices of a larger array count as what is sliced."""
    opcode = instruction.opcode
    if opcode in FREE or opcode.endswith(ASYNCHRONOUS_END):
        return 0.0
    written = _in_memory(instruction)
    if opcode == "slice-start":
        source, target, *_ = instruction.shapes
        return target.bytes * (source.in_main_memory + target.in_main_memory)
    if opcode.endswith("-start") and len(instruction.shapes) > 1:
        return written  # the result lists the source, which is read, beside the target
    if opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * written
    if opcode == "dynamic-update-slice":
        return 2 * _in_memory(computation.operands(instruction)[1])
    operands = computation.operands(instruction)
    if opcode != "fusion":
        return written + sum(_in_memory(operand) for operand in operands)
    inner = _inner(program, instruction)
    parameters = _parameters(inner)
    read = sum(
        read_of(program, inner, parameters[index], _in_memory(operand))
        for index, operand in enumerate(operands)
        if index in parameters
    )
    return read + _written_by(program, instruction)


def _in_memory(instruction: Instruction) -> float:
    return sum(shape.bytes for shape in instruction.shapes if shape.in_main_memory)


def _inner(program: Program, fusion: Instruction) -> Computation:
    return program.computations[fusion.called("calls")[0]]


def _parameters(inner: Computation) -> dict[int, Instruction]:
    return {int(each.arguments): each for each in inner if each.opcode == "parameter"}


def read_of(program: Program, inner: Computation, value: Instruction, whole: float) -> float:
    """How much of a value its users read: all of it, unless they only take slices, write into a part or hand it on."""
    read = 0.0
    for user in inner:
        if value.name not in user.operands:
            continue
        first = user.operands[0] == value.name
        if user.opcode in ("dynamic-slice", "slice", "gather") and first:
            read += user.bytes
        elif user.opcode in SAME_VALUES:
            read += read_of(program, inner, user, whole)
        elif user.opcode == "fusion":
            within = _inner(program, user)
            parameter = _parameters(within).get(user.operands.index(value.name))
            if parameter is not None:
                read += read_of(program, within, parameter, whole)
                if _is_result(within, parameter):
                    read += read_of(program, inner, user, whole)
        elif not (user.opcode in PASSED_ON or (user.opcode == "dynamic-update-slice" and first)):
            return whole
    return min(whole, read)


def _is_result(computation: Computation, value: Instruction) -> bool:
    """Whether a computation gives back a value as it is."""
    return value.is_root or any(
        _is_result(computation, user)
        for user in computation
        if user.opcode in SAME_VALUES and user.operands[0] == value.name
    )


def _written_by(program: Program, fusion: Instruction) -> float:
    """What a fusion writes; of results that are an operand with a part written anew, the part, of those handed on, nothing."""
    inner = _inner(program, fusion)
    root = next(each for each in inner if each.is_root)
    results = inner.operands(root) if root.opcode == "tuple" else [root]
    aliases = re.search(r"output_to_operand_aliasing=\{(.*?\)\})", fusion.attributes)
    handed_on = set(re.findall(r"\{(\d*)\}: \(", aliases.group(1))) if aliases else set()
    written, position = 0.0, 0
    for index, result in enumerate(results):
        outer = fusion.shapes[position : position + len(result.shapes)]
        position += len(result.shapes)
        size = sum(shape.bytes for shape in outer if shape.in_main_memory)
        while result.opcode == "bitcast":
            result = inner.operands(result)[0]
        if result.opcode == "dynamic-update-slice":
            size = min(size, inner.operands(result)[1].bytes)
        elif result.opcode == "fusion" and len(result.shapes) == 1:
            size = min(size, _written_by(program, result))
        elif result.opcode in ("parameter", *PASSED_ON) or str(index) in handed_on:
            size = 0.0
        written += size
    return written
