"""What a run came to, for people: `report.html` (`write_report`) and a table on the console (`print_summary`)."""

from rlhf.report.summary_table import print_summary
from rlhf.report.write import write_report

__all__ = ["print_summary", "write_report"]
