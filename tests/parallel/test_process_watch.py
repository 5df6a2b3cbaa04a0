"""What processes tell each other, with a store in memory in the place of that of `jax.distributed`."""

import json
import threading
import time
from types import SimpleNamespace

import jax
import pytest

from rlhf.errors import UserError
from rlhf.parallel import process_watch
from rlhf.parallel.process_watch import LEFT, NOTICE, PEER_LOST, SIGNS, ProcessWatch

SILENCE = 1.0
# The end of the process is here that of its thread.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


class Store:
    """Keys and values; with `gone` set, as a store whose process has died."""

    def __init__(self):
        self.values, self.gone = {}, False

    def key_value_set(self, key, value, allow_overwrite=False):
        self._reach()
        if key in self.values and not allow_overwrite:
            raise jax.errors.JaxRuntimeError("ALREADY_EXISTS")
        self.values[key] = value

    def key_value_dir_get(self, prefix):
        self._reach()
        return [(key, value) for key, value in self.values.items() if key.startswith(prefix)]

    def blocking_key_value_get(self, key, milliseconds):
        end = time.monotonic() + milliseconds / 1000
        while time.monotonic() < end:
            self._reach()
            if key in self.values:
                return self.values[key]
            time.sleep(0.01)
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: nothing came")

    def _reach(self):
        if self.gone:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed\nmore")


@pytest.fixture
def world(monkeypatch):
    """Process 0 of two, its store, and what it would have ended with: (message, status)."""
    jax.devices()  # started by what `jax.distributed` says, which is then replaced
    store, ends, said = Store(), [], []
    ended = threading.Event()

    def end(status):
        ends.append((b"".join(said).decode(), status))
        ended.set()
        raise SystemExit

    monkeypatch.setattr(process_watch.distributed, "global_state", SimpleNamespace(client=store))
    monkeypatch.setattr(process_watch.os, "_exit", end)
    monkeypatch.setattr(process_watch.os, "write", lambda file, text: said.append(text))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    watch = ProcessWatch(SILENCE)

    def last_words():
        assert ended.wait(60)
        return ends[0]

    yield SimpleNamespace(store=store, watch=watch, last_words=last_words, ends=ends)
    watch._ended.set()


def test_a_process_without_signs_of_life_ends_the_others(world):
    world.store.values[f"{SIGNS}1"] = "7"
    begun = time.monotonic()
    world.watch.begin()
    message, status = world.last_words()
    assert time.monotonic() - begun > SILENCE and status == PEER_LOST
    assert message.startswith("Process 0 stops, because process 1 of 2 has given no sign of life for 1 s")
    assert "goes on from the last checkpoint" in message


def test_a_process_that_has_left_is_not_missed(world):
    world.store.values[f"{SIGNS}1"] = LEFT
    world.watch.begin()
    time.sleep(2 * SILENCE)
    world.watch.leave()
    assert world.ends == [] and world.store.values[f"{SIGNS}0"] == LEFT


def test_a_failure_is_passed_on_with_its_message_and_status(world):
    with pytest.raises(SystemExit):
        world.watch.give_up(UserError("data.path is wrong", fix="mend it"), 2)
    assert world.ends == [("", 2)]
    assert json.loads(world.store.values[NOTICE]) == {"index": 0, "status": 2, "error": "UserError: data.path is wrong"}
    world.ends.clear()
    ProcessWatch(SILENCE).begin()
    while not world.ends:
        time.sleep(0.01)
    message, status = world.ends[0]
    assert message == "Process 0 stops, because process 0 has stopped: UserError: data.path is wrong.\n" and status == 2


def test_the_first_failure_is_the_one_that_is_told(world):
    world.store.values[NOTICE] = "of another"
    with pytest.raises(SystemExit):
        world.watch.give_up(ValueError(), 1)
    assert world.store.values[NOTICE] == "of another" and world.ends[0][1] == 1


def test_a_collective_that_fails_leaves_the_word_to_the_watch(world):
    """It fails because another process is gone, and the watch knows which."""
    world.store.values[f"{SIGNS}1"] = "7"
    world.watch.begin()
    with pytest.raises(SystemExit):
        world.watch.give_up(jax.errors.JaxRuntimeError("connection reset by peer"), 1)
    assert "process 1 of 2 has given no sign of life" in world.ends[0][0] and world.ends[0][1] == PEER_LOST


def test_a_store_that_is_gone_ends_a_process(world):
    world.store.gone = True
    world.watch.begin()
    message, status = world.last_words()
    assert "process 0, which all others report to, cannot be reached (UNAVAILABLE: Socket closed)" in message
    assert status == PEER_LOST
