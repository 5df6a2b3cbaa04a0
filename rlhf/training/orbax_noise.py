"""What orbax and the libraries below it print about an error that they raise as well; here it is told once, in one sentence."""

import logging
import sys
from collections.abc import Callable
from typing import Any


def silence_orbax() -> None:
    """Keeps such reports off standard error from now on. Errors that are raised are not touched."""
    logging.getLogger("absl").addFilter(_is_not_from_orbax)
    logging.getLogger("asyncio").addFilter(_is_not_about_orbax)
    if not isinstance(sys.unraisablehook, _WithoutClosedLoops):
        sys.unraisablehook = _WithoutClosedLoops(sys.unraisablehook)


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _is_not_about_orbax(record: logging.LogRecord) -> bool:
    # "Task exception was never retrieved", of the arrays after the first one that failed.
    return "orbax" not in record.getMessage()


class _WithoutClosedLoops:
    # After an array has failed, tensorstore's threads report the others to an event loop that is gone.
    def __init__(self, hook: Callable[[Any], None]):
        self._hook = hook

    def __call__(self, report: Any) -> None:
        if str(report.exc_value) != "Event loop is closed":
            self._hook(report)
