"""Counts XLA compilations, so that a run can report that it did not compile at every step."""

import jax

BACKEND_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
CACHE_HIT_EVENT = "/jax/compilation_cache/cache_hits"


class CompilationCounter:
    """Counts the programs that XLA makes ready in this process while the counter is entered; a context manager.

    Small operations outside `jax.jit` are programs too, so the count of a fresh run is more than the number of its jitted
    functions; what matters is that it does not grow with the steps.

    Attributes:
        count: programs so far, compiled or taken from the cache of an earlier run.
        from_cache: how many of them were taken from the cache.
        seconds: time spent on all of them.
    """

    def __init__(self):
        self.count = 0
        self.from_cache = 0
        self.seconds = 0.0

    def summary(self) -> dict[str, float]:
        """The counts under the names that a stage's summary gives them."""
        return {
            "compilations": self.count,
            "compilations_from_cache": self.from_cache,
            "compilation_seconds": round(self.seconds, 2),
        }

    def _on_duration(self, event: str, seconds: float, **details) -> None:
        if event == BACKEND_COMPILE_EVENT:
            self.count += 1
            self.seconds += seconds

    def _on_event(self, event: str, **details) -> None:
        if event == CACHE_HIT_EVENT:
            self.from_cache += 1

    def __enter__(self) -> "CompilationCounter":
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        jax.monitoring.register_event_listener(self._on_event)
        return self

    def __exit__(self, *exception) -> None:
        jax.monitoring.unregister_event_duration_listener(self._on_duration)
        jax.monitoring.unregister_event_listener(self._on_event)
