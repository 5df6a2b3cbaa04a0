"""Estimates of programs as text for people and as JSON."""

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
    described = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())
    lines = [
        f"{estimate.name} (compiled in {estimate.compile_seconds:.0f} s), for each chip:",
        f"  memory       {_gib(memory.peak)} of {_gib(memory.capacity)} GiB: {described}",
    ]
    if not memory.fits:
        lines += [
            f"               does NOT FIT, by {_gib(memory.peak - memory.capacity)} GiB",
            *_advice(estimate, knobs),
        ]
    if estimate.costs is None:
        return lines
    costs, seconds = estimate.costs, estimate.seconds
    lines += [
        f"  arithmetic   {costs.flops / 1e12:,.2f} TFLOP: {_milliseconds(seconds['arithmetic'])}",
        f"  main memory  {costs.memory_bytes / 1e9:,.2f} GB: {_milliseconds(seconds['memory'])}",
        f"  network      {costs.network_bytes / 1e9:,.2f} GB sent: {_milliseconds(seconds['network'])}",
    ]
    for kind, traffic in sorted(costs.collectives.items(), key=lambda item: -item[1].bytes):
        lines.append(f"    {kind:<20}{traffic.bytes / 1e9:10,.3f} GB in {traffic.count:,.0f}")
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


def _gib(size: float | None) -> str:
    return UNKNOWN if size is None else f"{size / 2**30:,.2f}"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f} ms"
