"""The terminal, as the package uses it: one console, short messages.

Everything goes to standard error, so that standard output stays free for what a command is asked to print.
"""

from rich.console import Console

from rlhf.parallel.processes import is_primary_process

console = Console(stderr=True, highlight=False)


def say(message: str, *, style: str | None = None) -> None:
    """Print a message once a run (on the primary process), unwrapped so that log files keep one line a message.

    Args:
        message: plain text; brackets are printed as they are.
        style: a rich style such as "bold" or "yellow".
    """
    if is_primary_process():
        console.print(message, style=style, markup=False, soft_wrap=True)
