"""A request for slices: made, waited for, looked at, given back (https://cloud.google.com/tpu/docs/queued-resources)."""

import json
import re
import time
from dataclasses import dataclass

from launcher.external import Runner
from launcher.place import Place
from launcher.problems import CAPACITY_FIX, CommandFailed, LaunchError, explain
from launcher.slices import Slice

ABSENT = "ABSENT"
ACTIVE = "ACTIVE"
WAITING = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING")
GONE = ("SUSPENDING", "SUSPENDED", "FAILED", "DELETING")
NODE_LOST = ("PREEMPTED", "TERMINATED", "STOPPED", "STOPPING", "DELETING")
REMINDER_SECONDS = 600


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        name: of the request, and of its slice; with several slices theirs are NAME-0, NAME-1 …
        slice: its hardware.
        count: slices.
        spot: cheaper, and taken away when others need it.
        runtime: software image; None for the generation's own.
        options: further words for `gcloud compute tpus queued-resources create`.
    """

    name: str
    slice: Slice
    count: int = 1
    spot: bool = False
    runtime: str | None = None
    options: tuple[str, ...] = ()

    @property
    def nodes(self) -> list[str]:
        """Names of the TPU VMs, one a slice."""
        return [self.name] if self.count == 1 else [f"{self.name}-{index}" for index in range(self.count)]

    def __str__(self) -> str:
        count = f"{self.count} x " if self.count > 1 else ""
        return f"{count}{self.slice.accelerator_type}{' spot' if self.spot else ''}"


class QueuedResource:
    """A request as Google Cloud has it.

    Args:
        runner: of commands.
        place: project and zone.
        request: what is asked for.
    """

    def __init__(self, runner: Runner, place: Place, request: Request):
        self.runner = runner
        self.place = place
        self.request = request

    def create(self) -> None:
        """Puts the request into the queue."""
        request = self.request
        nodes = (
            [f"--node-id={request.name}"]
            if request.count == 1
            else [f"--node-count={request.count}", f"--node-prefix={request.name}"]
        )
        self.runner.say(f"Requesting {request} in {self.place.zone} as {request.name}")
        self._gcloud(
            "queued-resources",
            "create",
            request.name,
            f"--accelerator-type={request.slice.accelerator_type}",
            f"--runtime-version={request.runtime or request.slice.runtime}",
            *nodes,
            *(["--spot"] if request.spot else []),
            *request.options,
        )

    def state(self, *, assumed: str = ACTIVE) -> str:
        """The request's state, ABSENT where there is none."""
        return self._describe(assumed)[0]

    def lost(self) -> bool:
        """Whether the slices have been taken away, or one of their machines has."""
        state = self.state()
        if state == ABSENT or state in GONE:
            return True
        if state != ACTIVE:
            return False
        return any(self._node_state(node) in NODE_LOST for node in self.request.nodes)

    def wait_until_active(self, minutes: float | None) -> bool:
        """Waits for the chips, saying now and then what it waits for; False where they went as soon as they came.

        Args:
            minutes: how long at most; None for as long as it takes.

        Raises:
            LaunchError: the request failed or waited too long.
        """
        started = reminded = time.monotonic()
        said = None
        while True:
            state, detail = self._describe(ACTIVE)
            now = time.monotonic()
            if state == ACTIVE:
                return True
            if state == ABSENT or (state in GONE and state != "FAILED"):
                return False
            if state == "FAILED":
                failure = CommandFailed(["queued resource", self.request.name], 1, f"state {state}: {detail}")
                raise explain(failure, project=self.place.project, zone=self.place.zone, what=str(self.request))
            if state != said or now - reminded > REMINDER_SECONDS:
                self.runner.say(self._waiting_message(state, now - started))
                said, reminded = state, now
            if minutes is not None and now - started > 60 * minutes:
                raise LaunchError(
                    f"{self.request.name} is still {state} after {minutes:g} minutes: no capacity in {self.place.zone}"
                    f" for {self.request}",
                    fix=f"{CAPACITY_FIX} The request stays in the queue until tpu/delete {self.request.name}.",
                )
            self.runner.wait()

    def delete(self) -> None:
        """Gives the chips back and removes the request; does nothing where there is none."""
        try:
            self._gcloud("queued-resources", "delete", self.request.name, "--force")
        except CommandFailed as error:
            if not _not_found(error):
                raise self._explained(error) from error

    def _waiting_message(self, state: str, seconds: float) -> str:
        message = f"{self.request.name}: {state} for {seconds / 60:.0f} min"
        if state == "WAITING_FOR_RESOURCES":
            message += f"; no free {self.request} in {self.place.zone} yet. {CAPACITY_FIX[0].upper()}{CAPACITY_FIX[1:]}"
        return message

    def _describe(self, assumed: str) -> tuple[str, str]:
        """State and, where it failed, why."""
        content = json.dumps({"state": {"state": assumed}})
        try:
            output = self._gcloud("queued-resources", "describe", self.request.name, "--format=json", assumed=content)
        except CommandFailed as error:
            if _not_found(error):
                return ABSENT, ""
            raise self._explained(error) from error
        state = json.loads(output).get("state", {})
        error = state.get("failedData", {}).get("error", {})
        return state.get("state", "CREATING"), error.get("message", "")

    def _node_state(self, node: str) -> str:
        try:
            return self._gcloud("tpu-vm", "describe", node, "--format=value(state)", assumed="READY").strip()
        except CommandFailed as error:
            if _not_found(error):
                return "TERMINATED"
            raise self._explained(error) from error

    def _gcloud(self, *words: str, assumed: str = "") -> str:
        try:
            return self.runner.read(self.place.gcloud(*words), assumed=assumed)
        except CommandFailed as error:
            if words[1] == "create":
                raise self._explained(error) from error
            raise

    def _explained(self, error: CommandFailed) -> LaunchError:
        return explain(error, project=self.place.project, zone=self.place.zone, what=str(self.request))


def _not_found(error: CommandFailed) -> bool:
    return re.search(r"NOT_FOUND|was not found|could not be found", error.errors) is not None
