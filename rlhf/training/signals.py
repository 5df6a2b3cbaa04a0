"""Stopping in an orderly way: a signal is noted, the step is finished, the state is saved, and the run says how to go on."""

import signal
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

from rlhf.errors import OrderlyStop


class Interrupted(OrderlyStop):
    """The run stopped at a signal after saving; the same command continues it.

    Args:
        signal_number: the signal that was received, for example `signal.SIGTERM`.
        step: the step that was saved.

    Attributes:
        exit_code: status the command line exits with: 128 + signal, so 143 for SIGTERM and 130 for SIGINT.
    """

    def __init__(self, signal_number: int, step: int):
        self.signal_number = signal_number
        self.step = step
        self.exit_code = 128 + signal_number
        name = signal.Signals(signal_number).name
        super().__init__(f"Stopped by {name} and saved at step {step}; run the same command to continue.")


class SignalWatch:
    """Notes SIGTERM and SIGINT instead of dying from them, while entered; a context manager.

    A second signal of either kind has its usual effect at once, for someone who does not want to wait for the step. Signals
    can be watched from the main thread only; in another thread nothing is watched.

    Attributes:
        received: the first signal's number, or None.
    """

    def __init__(self):
        self.received: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "SignalWatch":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame) -> None:
        self.received = number
        self._restore()

    def agreed(self, *, synchronize: bool) -> int | None:
        """The signal at which to stop now, the same answer on every process.

        With several processes the signal may reach only one, so they compare notes, but only when `synchronize` is true
        (every process must call it so at the same steps); at other steps the answer is None.
        """
        if jax.process_count() == 1:
            return self.received
        if not synchronize:
            return None
        received = multihost_utils.process_allgather(np.int32(self.received or 0))
        return int(received.max()) or None
