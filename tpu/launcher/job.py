"""The program on the machines: sent, started, followed. The other half is remote/job.sh."""

import re
import shlex
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.source_code import LARGE_BYTES, SourceCode
from launcher.workers import Workers

MARK = b"@@rlhf-job "
SCRIPT = "code/tpu/remote/job.sh"
MOUNTS = "/mnt/gcs"
BUCKET = re.compile(r"gs://([a-z0-9][a-z0-9._-]+)")


@dataclass(frozen=True)
class Status:
    """What a machine says of its program.

    Attributes:
        kind: absent, running, exited, rebooted, vanished, or lost when the machine does not say.
        attempt: which start it speaks of.
        exit_code: of a program that has exited.
    """

    kind: str
    attempt: str | None = None
    exit_code: int | None = None


LOST = Status("lost")


def parse_status(line: str) -> Status:
    """Reads the line that `job.sh status` prints."""
    words = line.split()
    if not words:
        return LOST
    return Status(words[0], words[1] if len(words) > 1 else None, int(words[2]) if words[0] == "exited" else None)


class Job:
    """One program under one name on all machines.

    Args:
        workers: the machines.
        name: of the folder there.
        program: its words; `gs://BUCKET/...` in them becomes a folder of the machine.
        environment: variables it is given.
        mount: whether buckets become folders.
    """

    def __init__(self, workers: Workers, name: str, program: list[str], environment: Mapping[str, str], mount: bool):
        self.workers = workers
        self.folder = f"rlhf-jobs/{name}"
        self.buckets = sorted(set(BUCKET.findall(" ".join(program)))) if mount else []
        self.program = [BUCKET.sub(rf"{MOUNTS}/\1", word) for word in program] if mount else program
        self.environment = environment

    def prepare(self, code: SourceCode) -> None:
        """Sends the code and the environment, and installs what the program needs."""
        say = self.workers.runner.say
        with tempfile.TemporaryDirectory() as temporary:
            archive, environment = Path(temporary) / "code.tar.gz", Path(temporary) / "environment"
            size = code.write_archive(archive)
            environment.touch(mode=0o600)
            environment.write_text(
                "".join(f"{name}={shlex.quote(value)}\n" for name, value in self.environment.items())
            )
            say(f"Sending {len(code.files)} files of revision {code.revision} ({size / 1e6:.1f} MB)")
            if code.left_behind:
                shown = ", ".join(code.left_behind[:5]) + (" …" if len(code.left_behind) > 5 else "")
                say(f"Not sent, since git does not track them (`git add` does): {shown}")
            if size > LARGE_BYTES:
                say("That is large for code; data belongs in a bucket.")
            self.workers.run(f"mkdir -p {self.folder}")
            self.workers.copy([archive, environment], self.folder)
        say("Installing on every machine (a few minutes the first time)")
        unpack = f"cd {self.folder} && rm -rf code.new && mkdir code.new && tar -xzf code.tar.gz -C code.new"
        replace = "rm -rf code && mv code.new code"
        setup = shlex.join(["bash", f"{self.folder}/code/tpu/remote/setup.sh", self.folder, *self.buckets])
        self.workers.run(f'{unpack} && {replace} && cd "$HOME" && {setup}')

    def start(self, attempt: str) -> None:
        """Starts the program on every machine where this attempt has not been started yet."""
        self.workers.run(self._script("start", attempt, *self.program))

    def status(self) -> Status:
        """What the first machine says of it."""
        script = f"{self.folder}/{SCRIPT}"
        return parse_status(
            self.workers.read(
                f"if [ -f {script} ]; then {self._script('status')}; else echo absent; fi", assumed="absent"
            )
        )

    def follow(self, position: int, write: Callable[[bytes], None]) -> tuple[Status, int]:
        """Passes the output of the first machine on until the program ends or the connection breaks.

        Args:
            position: bytes of the output that have been passed on before.
            write: takes whole lines.

        Returns:
            The status at the end (LOST when the connection broke) and the new position.
        """
        reader = LogReader(position, write)
        for piece in self.workers.stream(self._script("follow", str(position + 1))):
            reader.feed(piece)
        return reader.status, reader.position

    def stop(self) -> None:
        """Ends the program on every machine that can be reached, after it has saved."""
        self.workers.read_everywhere(self._script("stop"))

    def last_lines(self) -> str:
        """The end of the output of every machine."""
        return self.workers.read_everywhere(f"hostname; tail -n 15 {self.folder}/log")

    def _script(self, command: str, *words: str) -> str:
        return shlex.join(["bash", f"{self.folder}/{SCRIPT}", command, self.folder, *words])


class LogReader:
    """Takes the output of `job.sh follow` apart: lines of the program, and lines of the script.

    gcloud repeats a command whose connection broke, so a part of the output may come twice; the script says from which byte
    it starts, and what has been seen is left out.

    Args:
        position: bytes of the program's output that have been passed on before.
        write: takes whole lines.

    Attributes:
        position: the same, now.
        status: what the script said last; LOST until then.
    """

    def __init__(self, position: int, write: Callable[[bytes], None]):
        self.position = position
        self.status = LOST
        self._write = write
        self._partial = b""
        self._repeated = 0
        self._empty_line = False

    def feed(self, piece: bytes) -> None:
        """Takes the next bytes as they come."""
        *lines, self._partial = (self._partial + piece).split(b"\n")
        for line in lines:
            self._line(line)

    def _line(self, line: bytes) -> None:
        if line.startswith(MARK):
            # The script sets its line apart by a newline, which is not the program's.
            self._empty_line = False
            self._control(line[len(MARK) :].decode())
            return
        if self._empty_line:
            self._pass_on(b"\n")
        self._empty_line = not line
        if line:
            self._pass_on(line + b"\n")

    def _control(self, text: str) -> None:
        word, _, rest = text.partition(" ")
        if word == "from":
            self._repeated = max(0, self.position - (int(rest) - 1))
            self.status = LOST
        else:
            self.status = parse_status(text)

    def _pass_on(self, content: bytes) -> None:
        fresh = content[self._repeated :]
        self._repeated = max(0, self._repeated - len(content))
        if fresh:
            self.position += len(fresh)
            self._write(fresh)
