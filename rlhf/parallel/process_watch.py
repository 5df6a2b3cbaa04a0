"""Signs of life between processes, and an end for all when one has stopped.

A process whose partner is gone would wait in a collective operation, on most hardware for ever. So a thread of each process
writes a sign of life into the store that `jax.distributed` keeps on process 0, reads those of the others, and waits for the
notice that a process which fails leaves there.
"""

import json
import os
import sys
import threading
import time
from contextlib import suppress
from typing import NoReturn

import jax
from jax._src import distributed  # the store has no public name

PEER_LOST = 75  # "temporary failure": the same command can go on
NOTICE = "rlhf/notice"
SIGNS = "rlhf/signs/"
LEFT = "left"
GO_ON = "Start the same command again, on all processes: it goes on from the last checkpoint."


class ProcessWatch:
    """Watches over the other processes of this run from a thread.

    Args:
        silence_timeout: seconds without a sign of life after which a process counts as dead.
    """

    def __init__(self, silence_timeout: float):
        self._timeout = silence_timeout
        self._interval = min(1.0, silence_timeout / 5)
        self._index, self._count = jax.process_index(), jax.process_count()
        self._store = distributed.global_state.client
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="process watch", daemon=True)

    def begin(self) -> None:
        """Starts to watch and to give signs of life."""
        self._thread.start()

    def leave(self) -> None:
        """Ends watching, at the end of the run; the others do not wait for this process any more."""
        self._ended.set()
        self._thread.join()
        self._store.key_value_set(f"{SIGNS}{self._index}", LEFT, allow_overwrite=True)

    def give_up(self, error: BaseException, status: int) -> NoReturn:
        """Ends this process because of an error, and has the others end.

        Args:
            error: what went wrong.
            status: exit status of this process and of the others.
        """
        if isinstance(error, jax.errors.JaxRuntimeError):
            # It may have failed because another process is gone. Then the watch ends this one, and names the other.
            self._thread.join(self._timeout + 10 * self._interval)
        self._ended.set()
        lines = str(error).strip().splitlines() or [""]
        notice = {"index": self._index, "status": status, "error": f"{type(error).__name__}: {lines[0]}"}
        # Where it fails another process has left a notice before, or the store is gone: the others stop already.
        with suppress(jax.errors.JaxRuntimeError):
            self._store.key_value_set(NOTICE, json.dumps(notice))
            if self._index == 0:
                time.sleep(2 * self._interval)  # process 0 keeps the store that others read it from
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # an ordinary exit would wait for the other processes

    def _watch(self) -> None:
        heard: dict[int, tuple[str, float]] = {}
        number = 0
        while not self._ended.is_set():
            try:
                self._read_notice()
                number += 1
                self._store.key_value_set(f"{SIGNS}{self._index}", str(number), allow_overwrite=True)
                signs = {int(key.removeprefix(SIGNS)): sign for key, sign in self._store.key_value_dir_get(SIGNS)}
            except jax.errors.JaxRuntimeError as error:
                self._stop(f"process 0, which all others report to, cannot be reached ({str(error).splitlines()[0]})")
                return
            self._look_for_silence(signs, heard)

    def _read_notice(self) -> None:
        """Waits an interval for a notice, and ends this process if there is one."""
        try:
            notice = json.loads(self._store.blocking_key_value_get(NOTICE, int(1000 * self._interval)))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                return
            raise
        self._stop(f"process {notice['index']} has stopped: {notice['error']}", notice["status"])

    def _look_for_silence(self, signs: dict[int, str], heard: dict[int, tuple[str, float]]) -> None:
        now = time.monotonic()
        for index in range(self._count):
            sign = signs.get(index, "")
            if index not in heard or heard[index][0] != sign:
                heard[index] = (sign, now)
            elif sign != LEFT and now - heard[index][1] > self._timeout:
                self._stop(
                    f"process {index} of {self._count} has given no sign of life for {self._timeout:g} s: it was killed, ran out of"
                    " memory, or its machine or network is gone"
                )

    def _stop(self, reason: str, status: int = PEER_LOST) -> None:
        """Ends this process, unless it has ended watching in the meantime."""
        if self._ended.is_set():
            return
        hint = f"\n  What to do: {GO_ON}" if status == PEER_LOST else ""
        # Straight to the file: the main thread may be holding what Python's own printing locks.
        os.write(2, f"Process {self._index} stops, because {reason}.{hint}\n".encode())
        os._exit(status)
