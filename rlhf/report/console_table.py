"""A plain table of text on the console."""

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE
from rich.table import Table

from rlhf.tracking.console import console


def print_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table with its title; long cells are folded."""
    table = Table(
        title=title, title_justify="left", title_style="bold", header_style="dim", box=SIMPLE, padding=(0, 1, 0, 0)
    )
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
