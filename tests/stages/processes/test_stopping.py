"""A process is killed, or told to stop: the others stop in time and say why, and the same command goes on where they were."""

import json
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

COMMAND = str(Path(__file__).parent / "slow_command.py")
SILENCE = 15  # seconds; a loaded machine may not run a thread for some
MARGIN = 45
PEER_LOST = 75
STEPS_A_CHECKPOINT = 2


class Run:
    """A long run of two processes in one folder; starting it again goes on."""

    def __init__(self, start, ended, folder: Path, arguments: list[str]):
        self.start_processes, self.ended, self.folder = start, ended, folder
        self.arguments = [COMMAND, "sft", f"--output={folder}", *arguments, f"--processes.silence_timeout={SILENCE}"]
        self.processes = []

    def start(self) -> None:
        def command(index: int, port: int) -> list[str]:
            names = {"coordinator": f"127.0.0.1:{port}", "count": 2, "index": index}
            return [*self.arguments, *(f"--processes.{name}={value}" for name, value in names.items())]

        self.processes = self.start_processes(command, 2)

    def saved(self) -> int:
        """The last step that is saved."""
        return max((int(path.name) for path in self.folder.glob("checkpoints/*") if path.name.isdigit()), default=0)

    def until_saved(self, step: int) -> None:
        """Waits for a checkpoint of a step or a later one."""
        while self.saved() < step:
            assert [process.poll() for process in self.processes] == [None, None], "".join(self.ended(self.processes))[
                -3000:
            ]
            time.sleep(0.05)

    def end(self) -> SimpleNamespace:
        """Waits for both processes: what they said, exit statuses, and seconds until they had ended."""
        begun = time.monotonic()
        said = self.ended(self.processes)
        seconds = time.monotonic() - begun
        return SimpleNamespace(said=said, statuses=[process.returncode for process in self.processes], seconds=seconds)


@pytest.fixture(scope="module")
def run(start, ended, folders, world, tmp_path_factory) -> Run:
    arguments = {
        "model.init_from": folders.policy,
        "data.path": world / "demonstrations.jsonl",
        "max_length": 96,
        "packing": "false",
        "loop.steps": 100_000,
        "loop.batch_size": 8,
        "loop.log_every": 1,
        "loop.checkpoint_every": STEPS_A_CHECKPOINT,
        "mesh.data": 1,
        "mesh.fsdp": 8,
    }
    folder = tmp_path_factory.mktemp("stopping") / "sft"
    return Run(start, ended, folder, [f"--{name}={value}" for name, value in arguments.items()])


@pytest.mark.slow
def test_killed_missed_restarted_and_told_to_stop(run):
    """One story, since each start of two processes takes seconds."""
    run.start()
    run.until_saved(2 * STEPS_A_CHECKPOINT)
    run.processes[1].kill()
    missed = run.end()
    assert missed.seconds < SILENCE + MARGIN and missed.statuses == [PEER_LOST, -signal.SIGKILL], missed.said[0][-3000:]
    assert f"process 1 of 2 has given no sign of life for {SILENCE} s" in missed.said[0]
    assert "Start the same command again, on all processes" in missed.said[0]

    saved = run.saved()
    run.start()
    run.until_saved(saved + STEPS_A_CHECKPOINT)
    run.processes[0].kill()
    missed = run.end()
    assert f"Continuing from step {saved}" in missed.said[0]
    # Where the store is gone, JAX ends the process too, by SIGABRT; the quicker of the two is heard.
    assert missed.seconds < SILENCE + MARGIN and missed.statuses[1] in (PEER_LOST, -signal.SIGABRT), missed.said[1][
        -3000:
    ]
    assert (
        "process 0, which all others report to, cannot be reached" in missed.said[1]
        or "another task died" in missed.said[1]
    )

    saved = run.saved()
    run.start()
    run.until_saved(saved + STEPS_A_CHECKPOINT)
    run.processes[1].terminate()
    told = run.end()
    assert f"Continuing from step {saved}" in told.said[0]
    assert told.statuses == [128 + signal.SIGTERM] * 2, "".join(told.said)[-3000:]
    assert f"Stopped by SIGTERM and saved at step {run.saved()}" in told.said[0] and "Stopped by" not in told.said[1]
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, run.saved() + 1))
