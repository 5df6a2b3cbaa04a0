#!/usr/bin/env python3
"""Acts as `gcloud compute tpus` out of a folder: requests, machines (folders, on which commands really run), and mishaps.

The folder is named by FAKE_CLOUD and holds scenario.json (what happens), calls.jsonl (what was asked), states/NAME (of a request)
and machines/NODE-WORKER/ (their home folders). A file `preempted` takes the chips away until the request is deleted.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
SCENARIO = json.loads((CLOUD / "scenario.json").read_text())
NOT_FOUND = "ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource was not found"


def main(words):
    with (CLOUD / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(words) + "\n")
    if words[:2] == ["config", "get-value"]:
        print(SCENARIO.get("config", {}).get(words[2], ""))
        return
    _, _, group, action, *rest = words
    options = dict(word[2:].partition("=")[::2] for word in rest if word.startswith("--"))
    names = [word for word in rest if not word.startswith("--")]
    {
        ("queued-resources", "create"): create,
        ("queued-resources", "describe"): describe,
        ("queued-resources", "delete"): delete,
        ("tpu-vm", "describe"): describe_node,
        ("tpu-vm", "ssh"): ssh,
        ("tpu-vm", "scp"): copy,
    }[group, action](names, options)


def fail(message, code=1):
    print(message, file=sys.stderr)
    sys.exit(code)


def state_file(name):
    return CLOUD / "states" / name


def once(mishap):
    """Whether a mishap that may happen a number of times happens now."""
    counter = CLOUD / f"count-{mishap}"
    done = int(counter.read_text()) if counter.exists() else 0
    counter.write_text(str(done + 1))
    return done < SCENARIO.get(mishap, 0)


def create(names, options):
    if "create_error" in SCENARIO:
        fail(SCENARIO["create_error"])
    if state_file(names[0]).exists():
        fail("ERROR: ALREADY_EXISTS")
    state_file(names[0]).parent.mkdir(exist_ok=True)
    state_file(names[0]).write_text(json.dumps(SCENARIO.get("states", ["ACTIVE"])))
    for node in nodes(names[0], options):
        for worker in range(SCENARIO.get("workers", 2)):
            machine = CLOUD / "machines" / f"{node}-{worker}"
            (machine / ".local/bin").mkdir(parents=True)
            shutil.copy(Path(__file__).resolve().with_name("fake_uv.sh"), machine / ".local/bin/uv")
            (machine / ".local/bin/uv").chmod(0o755)


def nodes(name, options):
    if "node-count" in options:
        return [f"{options['node-prefix']}-{index}" for index in range(int(options["node-count"]))]
    return [options["node-id"]]


def describe(names, options):
    if not state_file(names[0]).exists():
        fail(NOT_FOUND)
    states = json.loads(state_file(names[0]).read_text())
    state, later = states[0], states[1:] or states
    state_file(names[0]).write_text(json.dumps(later))
    content = {"state": {"state": "SUSPENDED" if (CLOUD / "preempted").exists() else state}}
    if state == "FAILED":
        content["state"]["failedData"] = {"error": {"message": SCENARIO["failure"]}}
    print(json.dumps(content))


def describe_node(names, options):
    print("READY")


def delete(names, options):
    if not state_file(names[0]).exists():
        fail(NOT_FOUND)
    state_file(names[0]).unlink()
    (CLOUD / "preempted").unlink(missing_ok=True)
    shutil.rmtree(CLOUD / "machines", ignore_errors=True)


def machines(node, options):
    workers = sorted((CLOUD / "machines").glob(f"{node}-?"))
    return workers if options.get("worker") == "all" else workers[:1]


def ssh(names, options):
    if once("ssh_failures") or (CLOUD / "preempted").exists():
        fail("ssh: connect to host 203.0.113.7 port 22: Connection refused", 255)
    breaks = "follow" in options["command"] and once("broken_connections")
    failed = 0
    for machine in machines(names[0], options):
        failed = run(machine, options["command"], breaks) or failed
    sys.exit(failed)


def run(machine, command, breaks):
    """Runs a command on a machine until it ends, the chips are taken away, or the connection breaks."""
    environment = {**os.environ, "HOME": str(machine)}
    process = subprocess.Popen(["bash", "-c", command], cwd=machine, env=environment, start_new_session=True)
    started = time.monotonic()
    while process.poll() is None:
        if (CLOUD / "preempted").exists():
            for pid in (CLOUD / "machines").glob("*/rlhf-jobs/*/pid"):
                stop(int(pid.read_text()))
            stop(process.pid)
            return 255
        if breaks and time.monotonic() - started > SCENARIO.get("break_after", 0.6):
            stop(process.pid)
            return 255
        time.sleep(0.02)
    return process.returncode


def stop(group):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def copy(names, options):
    *files, target = names
    node, _, folder = target.partition(":")
    for machine in machines(node, options):
        for file in files:
            shutil.copy(file, machine / folder)


main([word for word in sys.argv[1:] if word != "--quiet"])
