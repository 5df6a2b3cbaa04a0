"""Files and commands to the machines of the slices, over ssh."""

import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launcher.external import Runner
from launcher.place import Place
from launcher.problems import CommandFailed, LaunchError

ATTEMPTS = 5


class Workers:
    """All machines of one request.

    Args:
        runner: of commands.
        place: project and zone.
        nodes: names of the TPU VMs, one a slice.
        options: further words for `gcloud compute tpus tpu-vm ssh` and `scp`, for example --internal-ip.
    """

    def __init__(self, runner: Runner, place: Place, nodes: list[str], options: tuple[str, ...] = ()):
        self.runner = runner
        self.place = place
        self.nodes = nodes
        self.options = options

    def run(self, command: str) -> None:
        """Runs a shell command on every machine.

        Raises:
            LaunchError: a machine could not be reached, or the command failed there.
        """
        self._on_each_node(lambda node: self._retrying(self._ssh(node, "all", command), node))

    def copy(self, files: list[Path], folder: str) -> None:
        """Copies files to every machine, into a folder that is there, relative to the home folder."""
        names = [str(file) for file in files]

        def copy(node: str) -> None:
            words = ["tpu-vm", "scp", *names, f"{node}:{folder}/", "--worker=all", *self.options]
            self._retrying(self.place.gcloud(*words), node)

        self._on_each_node(copy)

    def read(self, command: str, *, assumed: str = "") -> str:
        """What a shell command prints on the first machine of the first slice; see `run`."""
        return self._retrying(self._ssh(self.nodes[0], "0", command), self.nodes[0], assumed)

    def stream(self, command: str) -> Iterator[bytes]:
        """The same as it comes, once and without a word about errors."""
        return self.runner.stream(self._ssh(self.nodes[0], "0", command))

    def read_everywhere(self, command: str) -> str:
        """What a shell command prints on every machine, one after the other; what cannot be had is left out."""
        outputs = []
        for node in self.nodes:
            try:
                outputs.append(self.runner.read(self._ssh(node, "all", command)))
            except CommandFailed as error:
                outputs.append(f"{node}: {error.errors}\n")
        return "".join(outputs)

    def _ssh(self, node: str, worker: str, command: str) -> list[str]:
        return self.place.gcloud("tpu-vm", "ssh", node, f"--worker={worker}", f"--command={command}", *self.options)

    def _on_each_node(self, action) -> None:
        if len(self.nodes) == 1 or self.runner.dry_run:
            for node in self.nodes:
                action(node)
            return
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(action, self.nodes))

    def _retrying(self, command: list[str], node: str, assumed: str = "") -> str:
        """Machines that have just been made take a while to answer, and networks have their moments."""
        for attempt in range(ATTEMPTS):
            try:
                return self.runner.read(command, assumed=assumed)
            except CommandFailed as error:
                failure = error
            if attempt + 1 < ATTEMPTS:
                pause = 2**attempt
                self.runner.say(f"{node} did not do it ({_last_line(failure.errors)}); trying again")
                self.runner.wait(pause)
        raise LaunchError(
            f"{node}: this failed {ATTEMPTS} times, the last time with exit status {failure.exit_code}:\n"
            f"  {shlex.join(command)}\n{failure.errors}",
            fix="if ssh was refused: `ssh-add ~/.ssh/google_compute_engine`, a firewall rule for port 22, or"
            " --ssh-option=--internal-ip from inside the network; if the command failed: what it says above."
            f" tpu/delete {node} stops the costs.",
        )


def _last_line(text: str) -> str:
    return text.splitlines()[-1][:200] if text else "no message"
