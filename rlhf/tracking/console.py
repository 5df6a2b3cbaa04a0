"""The terminal, as the package uses it: one console, short messages.

Everything goes to standard error, so that standard output stays free for what a command is asked to print.
"""

import jax
from rich.console import Console

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
