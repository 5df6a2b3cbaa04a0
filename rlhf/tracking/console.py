"""The terminal, as the package uses it: one console, short messages, small tables.

Everything goes to standard error, so that standard output stays free for what a command is asked to print.
"""

from collections.abc import Mapping

import jax
from rich.console import Console
from rich.table import Table

console = Console(stderr=True, highlight=False)


def is_primary_process() -> bool:
    """Whether this process speaks and writes for the run; true without `jax.distributed`, and then no device is started."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def say(message: str, *, style: str | None = None) -> None:
    """Print a message once a run (on the primary process), unwrapped so that log files keep one line a message.

    Args:
        message: plain text; brackets are printed as they are.
        style: a rich style such as "bold" or "yellow".
    """
    if is_primary_process():
        console.print(message, style=style, markup=False, soft_wrap=True)


def show_summary(title: str, values: Mapping[str, object]) -> None:
    """Print names and values as a two-column table."""
    if not is_primary_process():
        return
    table = Table("", "", title=title, title_justify="left", show_header=False)
    for name, value in values.items():
        table.add_row(name, f"{value:,.4g}" if isinstance(value, float) else str(value))
    console.print(table)
