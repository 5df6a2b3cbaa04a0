"""Counts XLA compilations, so that a run can report that it did not compile at every step."""

import jax

BACKEND_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class CompilationCounter:
    """Counts the programs that XLA compiles in this process while the counter is entered; a context manager.

    Small operations outside `jax.jit` are programs too, so the count of a fresh run is more than the number of its jitted
    functions; what matters is that it does not grow with the steps.

    Attributes:
        count: programs compiled so far.
        seconds: time spent in compiling them.
    """

    def __init__(self):
        self.count = 0
        self.seconds = 0.0

    def _on_event(self, event: str, seconds: float, **details) -> None:
        if event == BACKEND_COMPILE_EVENT:
            self.count += 1
            self.seconds += seconds

    def __enter__(self) -> "CompilationCounter":
        jax.monitoring.register_event_duration_secs_listener(self._on_event)
        return self

    def __exit__(self, *exception) -> None:
        jax.monitoring.unregister_event_duration_listener(self._on_event)
