"""From a request to the end of the program, whatever happens on the way.

                 ┌────────── the chips were taken away ──────────┐
                 ▼                                               │
    request ─▶ wait ─▶ send, install, start ─▶ follow the output ┴─▶ the program ended: its exit status

Every step looks at what is there before it does anything, so the same command, run again, goes on where it was.
"""

import shlex
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

from launcher.job import Job, Status
from launcher.memory import Launch, log_path, remember
from launcher.problems import LaunchError
from launcher.queued_resource import ABSENT, GONE, QueuedResource
from launcher.source_code import SourceCode

USER_ERROR = 2  # a wrong setting stays wrong
# The program may die of a lost machine before Google Cloud says that it is lost.
POLLS_FOR_LOSS = 6
RECONNECTIONS = 10


@dataclass(frozen=True)
class Patience:
    """What is tried again, and how often.

    Attributes:
        failures: starts after the program itself failed.
        wait_minutes: for chips; None for as long as it takes.
        restarts: starts after a machine restarted or the program vanished from it.
    """

    failures: int = 0
    wait_minutes: float | None = None
    restarts: int = 3


class Supervisor:
    """Brings one program to its end.

    Args:
        resource: the request for chips.
        job: the program.
        code: what it is made of.
        launch: what is remembered of it.
        patience: what is tried again.
    """

    def __init__(self, resource: QueuedResource, job: Job, code: SourceCode, launch: Launch, patience: Patience):
        self.resource = resource
        self.job = job
        self.code = code
        self.launch = launch
        self.patience = patience
        self.runner = resource.runner
        self.preemptions = 0

    def run(self) -> int:
        """Runs the program to its end; returns its exit status.

        Raises:
            LaunchError: there are no chips to be had, or the machines cannot be reached.
        """
        failures = restarts = 0
        self._remember()
        while True:
            self.have_chips()
            try:
                self.ensure_started()
            except LaunchError:
                if not self.resource.lost():
                    raise
                self.give_up_chips()
                continue
            end = follow(self.job, self.resource, log_path(self.launch.name, self.launch.attempt))
            if end.kind == "exited" and end.exit_code == 0:
                return self.collected(0)
            if end.exit_code != USER_ERROR and self.chips_lost():
                self.give_up_chips()
                continue
            if end.kind in ("rebooted", "vanished") and restarts < self.patience.restarts:
                restarts += 1
                self.runner.say(f"The program is gone from its machine ({end.kind}); starting it again")
                continue
            code = end.exit_code if end.kind == "exited" else 1
            if code != USER_ERROR and failures < self.patience.failures:
                failures += 1
                self.runner.say(
                    f"The program failed ({_describe(end)}); starting it again ({failures} of {self.patience.failures})"
                )
                self.collected(code)
                continue
            self.runner.say(
                f"The program failed ({_describe(end)}). The last lines of each machine:\n{self.job.last_lines()}"
            )
            return self.collected(code)

    def have_chips(self) -> None:
        """Makes sure that there are chips: asks for them, or takes those of an earlier call."""
        while True:
            state = self.resource.state(assumed=ABSENT)
            if state in GONE:
                self.runner.say(f"The request of that name is {state}; making a new one")
                self.resource.delete()
                state = ABSENT
            if state == ABSENT:
                self.resource.create()
            if self.resource.wait_until_active(self.patience.wait_minutes):
                return

    def give_up_chips(self) -> None:
        """Removes a request whose chips were taken away; it would count against the quota."""
        self.preemptions += 1
        self.runner.say(f"The chips were taken away (preemption {self.preemptions}); asking for new ones")
        self.resource.delete()

    def ensure_started(self) -> None:
        """Starts the program, unless it was started earlier and is still to be followed.

        Raises:
            LaunchError: another program runs under this name.
        """
        status = self.job.status()
        mine = status.attempt is not None and status.attempt == self.launch.attempt
        if status.kind == "running" and not mine:
            raise LaunchError(
                f"{self.launch.name} runs a program that was not started by this command from this computer",
                fix=f"choose another NAME, look at it with tpu/logs {self.launch.name},"
                f" or stop it with tpu/delete {self.launch.name}.",
            )
        if mine and status.kind == "exited" and not self.launch.collected:
            self.runner.say("The program ended meanwhile")
        elif mine and status.kind == "running":
            self.runner.say("The program runs; following it again")
            self.job.start(self.launch.attempt)  # on machines that an interrupted start did not reach
        else:
            self.start()

    def start(self) -> None:
        """Sends the code and starts the program."""
        self.job.prepare(self.code)
        self.launch.attempt, self.launch.collected = uuid.uuid4().hex[:8], False
        self._remember()
        self.runner.say(f"Starting {shlex.join(self.job.program)}")
        self.job.start(self.launch.attempt)

    def chips_lost(self) -> bool:
        """Whether the program ended because its chips were taken away; looks for a while, as that is known late."""
        for look in range(POLLS_FOR_LOSS):
            if self.resource.lost():
                return True
            if self.runner.dry_run:
                return False
            if look + 1 < POLLS_FOR_LOSS:
                self.runner.wait()
        return False

    def collected(self, exit_code: int) -> int:
        """Notes that the end has been seen."""
        self.launch.collected = True
        self._remember()
        return exit_code

    def _remember(self) -> None:
        if not self.runner.dry_run:
            remember(self.launch)


def follow(job: Job, resource: QueuedResource, copy: Path) -> Status:
    """Shows a job's output until it ends; connects again when the connection breaks.

    Args:
        job: the program.
        resource: its chips.
        copy: file that the output is added to; what is in it already has been shown.

    Returns:
        How the program ended; of the kind "lost" when its machines are gone.

    Raises:
        LaunchError: the machines are there and do not answer.
    """
    runner = resource.runner
    if runner.dry_run:
        job.follow(0, lambda lines: None)
        return Status("exited", exit_code=0)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with copy.open("ab") as file:

        def write(lines: bytes) -> None:
            for stream in (file, sys.stdout.buffer):
                stream.write(lines)
                stream.flush()

        position, silent = file.tell(), 0
        while silent < RECONNECTIONS:
            before = position
            status, position = job.follow(position, write)
            if status.kind not in ("lost", "running"):
                return status
            silent = 0 if position > before else silent + 1
            if resource.lost():
                return status
            runner.say("The connection broke; connecting again")
            runner.wait(min(2**silent, 8) / 4)
    raise LaunchError(
        f"{resource.request.name} is {resource.state()}, but does not answer over ssh",
        fix="run the same command again to try on; `gcloud compute tpus tpu-vm ssh NAME` shows why;"
        f" tpu/delete {resource.request.name} stops the costs.",
    )


def _describe(status: Status) -> str:
    return f"exit status {status.exit_code}" if status.kind == "exited" else status.kind
