"""Running other programs, or only saying which would be run."""

import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from launcher.problems import CommandFailed, LaunchError

NOT_INSTALLED = {
    "gcloud": "install the Google Cloud CLI (https://cloud.google.com/sdk/docs/install), then run `gcloud init`.",
    "git": "install git.",
}


@dataclass(frozen=True)
class Runner:
    """Runs external commands.

    Attributes:
        dry_run: print each command instead of running it, and go on as if all had gone well.
        poll: seconds between looks at something that takes its time; the unit of all waiting.
    """

    dry_run: bool = False
    poll: float = 15.0

    def say(self, text: str) -> None:
        """Tells the user something, beside the program's own output on standard output."""
        print(f"[{datetime.now():%H:%M:%S}] {'dry run: ' if self.dry_run else ''}{text}", file=sys.stderr, flush=True)

    def answer(self, text: str, end: str = "\n") -> None:
        """Prints what was asked for on standard output; a dry run, which knows no answer, keeps that to the commands."""
        if not self.dry_run:
            print(text, end=end)

    def wait(self, polls: float = 1) -> None:
        """Lets some time pass."""
        if not self.dry_run:
            time.sleep(self.poll * polls)

    def read(self, command: list[str], *, assumed: str = "") -> str:
        """Runs a command and returns what it prints.

        Args:
            command: its words.
            assumed: what a dry run takes for its output.

        Raises:
            CommandFailed: it ended with an error.
            LaunchError: it is not installed.
        """
        if self.dry_run:
            self._show(command)
            return assumed
        with self._start(command, stderr=subprocess.PIPE, text=True) as process:
            output, errors = process.communicate()
        if process.returncode:
            raise CommandFailed(command, process.returncode, errors)
        return output

    def stream(self, command: list[str]) -> Iterator[bytes]:
        """Runs a command and yields what it prints, in pieces as they come; what it says of errors is passed over.

        It ends when the command does, however that ends; when the caller stops reading, the command is stopped.
        """
        if self.dry_run:
            self._show(command)
            return
        with self._start(command, stderr=subprocess.DEVNULL, bufsize=0) as process:
            try:
                while piece := process.stdout.read(65536):
                    yield piece
            finally:
                if process.poll() is None:
                    process.terminate()

    def _start(self, command: list[str], **streams) -> subprocess.Popen:
        try:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, **streams)
        except FileNotFoundError as error:
            fix = NOT_INSTALLED.get(command[0], "install it.")
            raise LaunchError(f"the program {command[0]} was not found", fix=fix) from error

    def _show(self, command: list[str]) -> None:
        print(shlex.join(command), flush=True)
