"""The main table of a run on the console, and what to type next."""

from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from rlhf.report.artefacts import read_measure
from rlhf.report.names import MEASURES, in_order, measures_of, policy_name
from rlhf.report.tables import number
from rlhf.tracking.console import console as standard_console


def print_summary(summary: dict[str, Any], *, report: Path | None = None, console: Console = standard_console) -> None:
    """Print the policies of a run as a table.

    Args:
        summary: content of the run's summary.json.
        report: where the report is, if there is one.
        console: where to print.
    """
    policies = summary.get("policies") or {}
    if policies:
        console.print(_policy_table(policies))
    for name, entry in (summary.get("reward_models") or {}).items():
        accuracy, limit = read_measure(entry.get("accuracy")), read_measure(entry.get("accuracy_limit"))
        if accuracy is not None:
            expected = read_measure(entry.get("expected_accuracy"))
            fresh = f", {expected.value:.1%} on fresh labels" if expected is not None else ""
            attainable = f" of {limit.value:.1%} attainable" if limit is not None else ""
            console.print(f"{name} reward model: accuracy {accuracy.value:.1%}{fresh}{attainable}", highlight=False)
    if report is not None:
        _print_next(report, console)


def _policy_table(policies: dict[str, Any]) -> Table:
    """One row a policy; ± half the interval where one was measured."""
    measures = measures_of(policies)
    table = Table(
        title="Policies", title_justify="left", title_style="bold", header_style="dim", padding=(0, 0), box=SIMPLE
    )
    table.add_column("policy", no_wrap=True)
    for measure in measures:
        table.add_column(MEASURES[measure][0], justify="right", overflow="fold")
    for policy in in_order(policies):
        cells = []
        for measure in measures:
            found = read_measure(policies[policy].get(measure))
            if found is None:
                cells.append("–")
            elif found.has_interval:
                cells.append(f"{number(found.value)} [dim]±{number((found.high - found.low) / 2)}[/dim]")
            else:
                cells.append(number(found.value))
        table.add_row(policy_name(policy), *cells)
    return table


def _print_next(report: Path, console: Console) -> None:
    """What a reader may want to do now."""
    folder = report.parent
    console.print(f"\n[bold]Report:[/bold] {report}", soft_wrap=True, highlight=False)
    policy = next((stage for stage in ("ppo", "sft", "pretrain") if (folder / stage / "model").is_dir()), None)
    if policy is not None:
        console.print("[bold]Next:[/bold]", highlight=False)
        console.print(f"  rlhf generate --model.init_from={folder / policy}", soft_wrap=True, highlight=False)
        console.print("  rlhf ppo --help", soft_wrap=True, highlight=False)
