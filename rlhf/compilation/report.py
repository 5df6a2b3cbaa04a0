"""Estimates of programs as text for people and as JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rlhf.compilation.ahead import Estimate

UNKNOWN = "?"


def as_json(estimates: Sequence[Estimate]) -> list[dict[str, Any]]:
    """Everything that is known of each program: bytes, operations, seconds."""
    return [
        {
            "program": estimate.name,
            "fits": estimate.memory.fits,
            "memory": asdict(estimate.memory),
            "compile_seconds": round(estimate.compile_seconds, 2),
            **({} if estimate.costs is None else _costs(estimate)),
        }
        for estimate in estimates
    ]


def _costs(estimate: Estimate) -> dict[str, Any]:
    return {
        "flops": estimate.costs.flops,
        "memory_bytes": estimate.costs.memory_bytes,
        "collectives": {kind: asdict(traffic) for kind, traffic in estimate.costs.collectives.items()},
        "seconds": estimate.seconds,
        "bound": estimate.bound,
        "utilisation": estimate.utilisation,
    }


def as_text(estimates: Sequence[Estimate], knobs: dict[str, str]) -> str:
    """One paragraph a program.

    Args:
        estimates: of the programs.
        knobs: what to turn where memory does not suffice: "arguments" or "temporaries" → advice.
    """
    return "\n\n".join("\n".join(_paragraph(estimate, knobs)) for estimate in estimates)


def _paragraph(estimate: Estimate, knobs: dict[str, str]) -> list[str]:
    memory = estimate.memory
    parts = {"arguments": memory.arguments, "results": memory.results, "temporaries": memory.temporaries}
    described = ", ".join(f"{name} {_binary(size)}" for name, size in parts.items())
    lines = [
        f"{estimate.name} (compiled in {estimate.compile_seconds:.0f} s), for each chip:",
        f"  memory       {_binary(memory.peak)} of {_binary(memory.capacity)}: {described}",
    ]
    if not memory.fits:
        lines += [
            f"               does NOT FIT, by {_binary(memory.peak - memory.capacity)}",
            *_advice(estimate, knobs),
        ]
    if estimate.costs is None:
        return lines
    costs, seconds = estimate.costs, estimate.seconds
    lines += [
        f"  arithmetic   {_decimal(costs.flops)}FLOP: {_milliseconds(seconds['arithmetic'])}",
        f"  main memory  {_decimal(costs.memory_bytes)}B: {_milliseconds(seconds['memory'])}",
        f"  network      {_decimal(costs.network_bytes)}B sent: {_milliseconds(seconds['network'])}",
    ]
    for kind, traffic in sorted(costs.collectives.items(), key=lambda item: -item[1].bytes):
        lines.append(f"    {kind:<20}{_decimal(traffic.bytes):>10}B in {traffic.count:,.0f}")
    slowest = max(seconds.values())
    lines.append(
        f"  at best      {_milliseconds(slowest)} a run, bound by {estimate.bound}:"
        f" {100 * estimate.utilisation:.0f} % of the chip's arithmetic"
    )
    return lines


def _advice(estimate: Estimate, knobs: dict[str, str]) -> list[str]:
    memory = estimate.memory
    if memory.arguments is None and memory.temporaries is None:
        return [f"               try: {advice}" for advice in knobs.values()]
    larger = "arguments" if (memory.arguments or 0) > memory.peak / 2 else "temporaries"
    return [f"               most of it is {larger}; try: {knobs[larger]}"]


def _binary(size: float | None) -> str:
    """Bytes in the largest unit of 1024 that leaves at least 1."""
    if size is None:
        return UNKNOWN
    power = min(3, int(math.log(max(size, 1), 1024)))
    return f"{size / 1024**power:,.2f} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def _decimal(amount: float) -> str:
    """A number and a prefix, largest first: 90.0 T."""
    power = min(4, int(math.log(max(amount, 1), 1000)))
    return f"{amount / 1000**power:,.2f} {('', 'k', 'M', 'G', 'T')[power]}"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.3f} ms" if seconds < 0.01 else f"{1e3 * seconds:,.1f} ms"
