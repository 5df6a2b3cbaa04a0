"""Runs of one process with eight devices, or of two with four each, on this machine."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest

DEVICES = 8
PATIENCE = 900  # seconds; a run takes about one minute on a core that has nothing else to do


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def start(repository) -> Callable[..., list[subprocess.Popen]]:
    """Starts the processes of a run: `start(command, count)`; the command is made for an index and a port."""
    started = []

    def start(command: Callable[[int, int], Sequence[str]], count: int) -> list[subprocess.Popen]:
        port = free_port()
        flags = os.environ["XLA_FLAGS"].replace(f"device_count={DEVICES}", f"device_count={DEVICES // count}")
        environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(repository), "JAX_COMPILATION_CACHE_DIR": ""}
        processes = [
            subprocess.Popen(
                [sys.executable, *command(index, port)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index in range(count)
        ]
        started.extend(processes)
        return processes

    yield start
    for process in started:
        process.kill()
        process.wait()


def outputs(processes: Sequence[subprocess.Popen]) -> list[str]:
    """What each process has said, once all have ended."""
    return [process.communicate(timeout=PATIENCE)[0] for process in processes]


@pytest.fixture(scope="session")
def ended() -> Callable[[Sequence[subprocess.Popen]], list[str]]:
    """Waits for processes; see `outputs`."""
    return outputs
