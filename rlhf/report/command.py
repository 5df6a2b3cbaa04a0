"""Writes report.html from the folder of a run, and prints its main table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.report.artefacts import read_artefacts
from rlhf.report.summary_table import print_summary
from rlhf.report.write import write_report


@dataclass(frozen=True)
class Config:
    """Write a report.

    Attributes:
        run: folder of a run, as `rlhf pipeline` wrote it; report.html is put into it.
    """

    run: str


def run(config: Config) -> dict[str, Any]:
    """Write the report, print the table and say where the report is."""
    path = write_report(config.run)
    print_summary(read_artefacts(Path(config.run)).summary, report=path)
    return {"report": str(path)}
