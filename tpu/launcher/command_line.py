"""The commands `launch`, `status`, `logs`, `ssh` and `delete`: their words, and what they are wired to."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launcher.environment import job_environment
from launcher.external import Runner
from launcher.job import Job
from launcher.memory import Launch, folder, forget, log_path, recall
from launcher.place import Place, find_place
from launcher.problems import CommandFailed, LaunchError
from launcher.queued_resource import ABSENT, ACTIVE, GONE, QueuedResource, Request
from launcher.slices import parse_slice
from launcher.source_code import read_source_code
from launcher.supervision import Patience, Supervisor, follow
from launcher.workers import Workers

REPOSITORY = Path(__file__).resolve().parents[2]
INTERRUPTED = 130
SSH_OPTION_HELP = "further option of `gcloud compute tpus tpu-vm ssh` and `scp`, as --ssh-option=--internal-ip"

EXAMPLES = """
example:
  tpu/launch pilot --type v5e-16 --zone us-west4-a --spot -- \\
      rlhf ppo --config experiments/embedded_world/ppo.yaml --output gs://my-bucket/pilot

The same command again continues: it waits on, follows the running program, or starts it again.
"""


def main(words: list[str]) -> int:
    """Runs one command; returns the exit status."""
    command = COMMANDS.get(words[0]) if words else None
    if command is None:
        print(f"choose one of: {', '.join(COMMANDS)}", file=sys.stderr)
        return LaunchError.exit_code
    own, program = _split_at_program(words[1:])
    parser = argparse.ArgumentParser(
        f"tpu/{words[0]}",
        description=command.run.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=command.epilog,
    )
    _add_common(parser)
    command.add_options(parser)
    options = parser.parse_args(own)
    try:
        return command.run(options, program)
    except (LaunchError, CommandFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    except KeyboardInterrupt:
        print(
            f"\nStopped watching. What was started on the TPU goes on, and so do its costs.\n"
            f"  watch again   the same command\n"
            f"  look          tpu/status {options.name}\n"
            f"  end it all    tpu/delete {options.name}",
            file=sys.stderr,
        )
        return INTERRUPTED


def launch(options: argparse.Namespace, program: list[str]) -> int:
    """Get TPU chips, run a program on all of their machines to its end, and give the chips back."""
    if not program:
        raise LaunchError("no program is given", fix="write it after --, as in: -- rlhf ppo --config FILE")
    runner = Runner(options.dry_run, options.poll)
    before = recall(options.name)
    type_name = options.type or (before and before.type)
    if not type_name:
        raise LaunchError("--type is not given", fix="say which chips, as in --type v5e-16.")
    place = _place(runner, options, before)
    request = Request(
        options.name,
        parse_slice(type_name),
        options.slices,
        options.spot,
        options.runtime_version,
        tuple(options.create_option),
    )
    remembered = _same_launch(before, request, place, program)
    environment = job_environment(options.name, remembered.run_id, program, options.env)
    workers = Workers(runner, place, request.nodes, tuple(options.ssh_option))
    resource = QueuedResource(runner, place, request)
    supervisor = Supervisor(
        resource,
        Job(workers, options.name, program, environment, options.mount),
        read_source_code(REPOSITORY),
        remembered,
        Patience(options.retries, options.wait_minutes),
    )
    exit_code = supervisor.run()
    if options.keep:
        runner.say(f"The chips are kept, and so are their costs; tpu/delete {options.name} gives them back")
    else:
        runner.say("Giving the chips back")
        resource.delete()
    runner.say(f"Done: exit status {exit_code}, {supervisor.preemptions} preemptions; output kept in {folder()}")
    return exit_code


def status(options: argparse.Namespace, program: list[str]) -> int:
    """Say what there is of a launch: the state of its request, and of its program."""
    runner, resource, job = _existing(options)
    state = resource.state()
    runner.answer(f"{options.name} in {resource.place.zone} of {resource.place.project}: {state}")
    if state == ACTIVE and not resource.lost():
        program_status = job.status()
        code = "" if program_status.exit_code is None else f" with exit status {program_status.exit_code}"
        runner.answer(f"program: {program_status.kind}{code}")
    elif state in GONE:
        runner.answer(
            f"It is over; tpu/launch makes a new one, tpu/delete {options.name} removes what counts against the quota."
        )
    return 0


def logs(options: argparse.Namespace, program: list[str]) -> int:
    """Show the output of a launch's program and follow it to its end; changes nothing."""
    runner, resource, job = _existing(options)
    if options.all:
        runner.answer(job.last_lines())
        return 0
    attempt = job.status().attempt
    copy = log_path(options.name, attempt)
    if copy.is_file():
        sys.stdout.buffer.write(copy.read_bytes())
        sys.stdout.buffer.flush()
    end = follow(job, resource, copy)
    return end.exit_code or 0


def ssh(options: argparse.Namespace, program: list[str]) -> int:
    """Run a shell command, given after --, on every machine of a launch."""
    runner, _, job = _existing(options)
    runner.answer(job.workers.read_everywhere(" ".join(program)), end="")
    return 0


def delete(options: argparse.Namespace, program: list[str]) -> int:
    """End a launch: its program is stopped, its chips and machines are given back. What it wrote to a bucket stays."""
    runner, resource, job = _existing(options)
    state = resource.state()
    if state == ABSENT:
        runner.say(f"There is no {options.name} in {resource.place.zone} of {resource.place.project}")
    else:
        if state == ACTIVE and not options.now:
            runner.say("Stopping the program, which may take two minutes to save")
            job.stop()
        resource.delete()
        runner.say(f"Deleted {options.name}")
    if not options.dry_run:
        forget(options.name)
    return 0


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        run: what it does, of the options and the words after `--`; its docstring is the help's first line.
        add_options: its own options.
        epilog: end of its help.
    """

    run: Callable[[argparse.Namespace, list[str]], int]
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    epilog: str = ""


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of the launch; lower-case letters, digits, -")
    parser.add_argument("--project", help="Google Cloud project (default: that of the launch, or gcloud's)")
    parser.add_argument("--zone", help="zone, as us-west4-a (default: that of the launch, or gcloud's)")
    parser.add_argument("--ssh-option", action="append", default=[], metavar="OPTION", help=SSH_OPTION_HELP)
    parser.add_argument("--poll", type=float, default=15.0, metavar="SECONDS", help="between looks (default: 15)")
    parser.add_argument("--dry-run", action="store_true", help="print the external commands instead of running them")


def _add_launch_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--type", help="chips of a slice, as v5e-16, v6e-8, v5p-32, v4-32")
    add("--slices", type=int, default=1, metavar="N", help="slices, joined by the data-center network (default: 1)")
    add("--spot", action="store_true", help="cheaper chips that may be taken away; the program is then started again")
    add("--keep", action="store_true", help="keep the chips when the program has ended")
    add("--retries", type=int, default=0, metavar="K", help="start again after the program itself failed (default: 0)")
    add("--wait-minutes", type=float, metavar="M", help="give up waiting for chips after this long (default: never)")
    add("--env", action="append", default=[], metavar="NAME[=VALUE]", help="variable for the program")
    add("--no-mount", dest="mount", action="store_false",
        help="hand gs:// addresses to the program as they are, instead of mounting their buckets as folders")  # fmt: skip
    add("--runtime-version", metavar="IMAGE", help="software of the machines (default: the generation's own)")
    add("--create-option", action="append", default=[], metavar="OPTION",
        help="further option of `gcloud compute tpus queued-resources create`, as --create-option=--reserved")  # fmt: skip


COMMANDS = {
    "launch": Command(launch, _add_launch_options, EXAMPLES),
    "status": Command(status),
    "logs": Command(
        logs, lambda parser: parser.add_argument("--all", action="store_true", help="the last lines of every machine")
    ),
    "ssh": Command(ssh),
    "delete": Command(
        delete, lambda parser: parser.add_argument("--now", action="store_true", help="do not let the program save")
    ),
}


def _split_at_program(words: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in words:
        return words, []
    position = words.index("--")
    return words[:position], words[position + 1 :]


def _place(runner: Runner, options: argparse.Namespace, before: Launch | None) -> Place:
    return find_place(runner, options.project or (before and before.project), options.zone or (before and before.zone))


def _same_launch(before: Launch | None, request: Request, place: Place, program: list[str]) -> Launch:
    """What is remembered under that name, if it is the same experiment, else a new memory."""
    now = Launch(request.name, place.project, place.zone, request.slice.name, request.count, program=program)
    if before is None or before.collected:
        return now
    same = ("project", "zone", "type", "slices", "program")
    different = [key for key in same if getattr(before, key) != getattr(now, key)]
    if different:
        raise LaunchError(
            f"{request.name} was launched before with another {', '.join(different)}",
            fix=f"choose another NAME, or end that one with tpu/delete {request.name}.",
        )
    return before


def _existing(options: argparse.Namespace) -> tuple[Runner, QueuedResource, Job]:
    """What a launch consists of, from what is remembered of it."""
    runner = Runner(options.dry_run, options.poll)
    before = recall(options.name)
    place = _place(runner, options, before)
    request = Request(options.name, parse_slice(before.type if before else "v5e-1"), before.slices if before else 1)
    workers = Workers(runner, place, request.nodes, tuple(options.ssh_option))
    return runner, QueuedResource(runner, place, request), Job(workers, options.name, [], {}, mount=False)
