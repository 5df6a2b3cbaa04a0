"""One command from a laptop to the end of a program, in a cloud where things go wrong."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

PLACE = ["--project=lab", "--zone=us-west4-a", "--poll=0.05"]

HERE_AND_EVERYWHERE = 'echo "on $(basename $HOME) as $WANDB_RUN_ID"; echo "on $(basename $HOME)" >> $FAKE_CLOUD/seen'
ONCE = "test -e $FAKE_CLOUD/before || { touch $FAKE_CLOUD/before; %s; }; "
PREEMPTED_ONCE = ONCE % "echo $WANDB_RUN_ID > $FAKE_CLOUD/first_id; touch $FAKE_CLOUD/preempted; sleep 30"


def watch(cloud, program: str, *options: str) -> subprocess.Popen:
    """Begins a launch that Ctrl-C can interrupt, wherever the tests run."""
    words = [*PLACE, "--type=v5e-16", *options, "--", "sh", "-c", program]
    return subprocess.Popen(
        cloud.command("launch", "pilot", *words),
        env=cloud.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def seen(cloud) -> list[str]:
    return sorted((cloud.folder / "seen").read_text().split("\n")[:-1])


def test_a_program_runs_on_every_machine_and_its_output_and_exit_status_come_back(cloud):
    result = cloud.launch(HERE_AND_EVERYWHERE + "; cp REVISION $FAKE_CLOUD/; test -f rlhf/cli.py")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("on pilot-0 as ")
    assert seen(cloud) == ["on pilot-0", "on pilot-1"]
    (create,) = cloud.calls("queued-resources", "create")
    assert {"--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--node-id=pilot"} < set(create)
    assert "--spot" not in create
    assert len(cloud.calls("queued-resources", "delete")) == 1
    assert (cloud.folder / "REVISION").read_text().strip()


def test_secrets_are_on_no_command_line_and_reach_the_program(cloud):
    result = cloud.launch('test ${#WANDB_API_KEY} = 8 && test "$TASK" = "two words"', "--env=TASK=two words")
    assert result.returncode == 0, result.stderr
    assert "a-secret" not in (cloud.folder / "calls.jsonl").read_text() + result.stderr


def test_several_slices_have_their_own_names(cloud):
    result = cloud.launch(HERE_AND_EVERYWHERE, "--slices=2", "--spot")
    assert result.returncode == 0, result.stderr
    assert seen(cloud) == ["on pilot-0-0", "on pilot-0-1", "on pilot-1-0", "on pilot-1-1"]
    (create,) = cloud.calls("queued-resources", "create")
    assert {"--node-count=2", "--node-prefix=pilot", "--spot"} < set(create)


def test_after_a_preemption_the_program_runs_again_under_the_same_wandb_id(cloud):
    cloud.happens(workers=1)
    result = cloud.launch(PREEMPTED_ONCE + "echo $WANDB_RUN_ID", "--spot")
    assert result.returncode == 0, result.stderr
    assert result.stdout == (cloud.folder / "first_id").read_text() != "\n"
    assert len(cloud.calls("queued-resources", "create")) == len(cloud.calls("queued-resources", "delete")) == 2
    assert "1 preemptions" in result.stderr


@pytest.mark.parametrize("exit_code, retries, starts", [(3, 0, 1), (3, 2, 3), (2, 2, 1)])
def test_a_program_that_fails_is_started_again_only_as_often_as_allowed(cloud, exit_code, retries, starts):
    result = cloud.launch(f"echo start; exit {exit_code}", f"--retries={retries}")
    assert result.returncode == exit_code
    assert result.stdout.count("start") == starts
    assert "last lines of each machine" in result.stderr
    assert len(cloud.calls("queued-resources", "create")) == 1


def test_waiting_for_capacity_says_so_and_what_to_try(cloud):
    cloud.happens(states=["WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    result = cloud.launch("true")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("WAITING_FOR_RESOURCES") == 1
    assert "no free v5litepod-16 in us-west4-a yet" in result.stderr and "another zone" in result.stderr


def test_waiting_can_be_given_up(cloud):
    cloud.happens(states=["WAITING_FOR_RESOURCES"])
    result = cloud.launch("true", "--wait-minutes=0.001")
    assert result.returncode == 2
    assert "no capacity" in result.stderr and "tpu/delete pilot" in result.stderr
    assert not cloud.calls("queued-resources", "delete")


@pytest.mark.parametrize(
    "message, told",
    [
        ("Quota limit 'TPUV5sLitepodPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0", "iam-admin/quotas"),
        ("PERMISSION_DENIED: Cloud TPU API has not been used in project lab before", "gcloud services enable"),
        ("PERMISSION_DENIED: Permission 'tpu.nodes.create' denied", "roles/tpu.admin"),
        ("You do not currently have an active account selected. Please run: gcloud auth login", "gcloud auth login"),
        ("INVALID_ARGUMENT: Accelerator type v5litepod-16 is not available in zone", "accelerator-types list"),
        ("There is no more capacity in the zone", "another zone"),
    ],
)
def test_what_gcloud_refuses_is_explained(cloud, message, told):
    cloud.happens(create_error=f"ERROR: (gcloud.compute.tpus.queued-resources.create) {message}")
    result = cloud.launch("true")
    assert result.returncode == 2
    assert told in result.stderr and message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_request_that_failed_later_is_explained(cloud):
    cloud.happens(states=["PROVISIONING", "FAILED"], failure="Insufficient capacity")
    result = cloud.launch("true")
    assert result.returncode == 2
    assert "no capacity in us-west4-a for v5litepod-16" in result.stderr


def test_ssh_is_tried_again_and_then_given_up_with_a_message(cloud):
    cloud.happens(ssh_failures=2)
    assert cloud.launch("true", name="slow").returncode == 0
    cloud.happens(ssh_failures=1000)
    (cloud.folder / "count-ssh_failures").unlink()
    result = cloud.launch("true", "--poll=0.001")
    assert result.returncode == 2
    assert "Connection refused" in result.stderr and "ssh-add" in result.stderr


def test_a_broken_connection_loses_and_repeats_no_output(cloud):
    cloud.happens(broken_connections=2)
    result = cloud.launch("for i in 1 2 3 4 5 6 7 8; do echo line $i; echo; sleep 0.3; done")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "".join(f"line {i}\n\n" for i in range(1, 9))
    assert "connecting again" in result.stderr


def test_an_interrupted_laptop_attaches_again_with_the_same_command(cloud):
    program = "echo first $WANDB_RUN_ID; until test -e $FAKE_CLOUD/go; do sleep 0.1; done; echo second; exit 5"
    watching = watch(cloud, program, "--keep")
    assert watching.stdout.readline().startswith("first")
    watching.send_signal(signal.SIGINT)
    _, errors = watching.communicate(timeout=200)
    assert watching.returncode == 130 and "tpu/delete pilot" in errors
    status = cloud.run("status", "pilot")
    assert "ACTIVE" in status.stdout and "program: running" in status.stdout
    other = cloud.launch("echo other")
    assert other.returncode == 2 and "another program" in other.stderr
    (cloud.folder / "go").touch()
    again = cloud.launch(program, "--keep")
    assert again.stdout == "second\n" and again.returncode == 5
    assert len(cloud.calls("queued-resources", "create")) == 1
    assert cloud.run("delete", "pilot", "--now").returncode == 0
    assert "ABSENT" in cloud.run("status", "pilot", "--project=lab", "--zone=us-west4-a").stdout


def test_deleting_lets_the_program_save(cloud):
    program = "trap 'touch $FAKE_CLOUD/saved; exit 143' TERM; echo up; while true; do sleep 0.1; done"
    watching = watch(cloud, program)
    watching.stdout.readline()
    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=200)
    started = time.monotonic()
    assert cloud.run("delete", "pilot").returncode == 0
    assert (cloud.folder / "saved").exists()
    assert time.monotonic() - started < 110  # it does not wait for the two minutes that a program may take


def test_without_a_project_or_a_type_it_says_what_to_give(cloud):
    result = cloud.run("launch", "pilot", "--type=v5e-16", "--", "true")
    assert result.returncode == 2 and "--project" in result.stderr and "gcloud config set project" in result.stderr
    cloud.happens(config={"core/project": "lab", "compute/zone": "us-west4-a"})
    result = cloud.run("launch", "pilot", "--", "true")
    assert result.returncode == 2 and "--type" in result.stderr
    result = cloud.run("launch", "pilot", "--type=v5e-17", "--", "true")
    assert result.returncode == 2 and "v5e-16" in result.stderr


def test_a_dry_run_prints_every_command_and_runs_none(cloud):
    result = cloud.run(
        "launch", "pilot", "--type=v5e-16", "--dry-run", "--", "rlhf", "ppo", "--output", "gs://bucket/pilot"
    )
    assert result.returncode == 0, result.stderr
    assert not (cloud.folder / "calls.jsonl").exists() and not (cloud.folder / "home").exists()
    for part in ["config get-value", "create", "scp", "setup.sh", "job.sh start", "job.sh follow", "delete"]:
        assert part in result.stdout
    assert "/mnt/gcs/bucket/pilot" in result.stdout and "a-secret" not in result.stdout


def test_no_gcloud_is_explained(cloud):
    commands = cloud.folder / "bin"
    (commands / "gcloud").unlink()
    (commands / "python3").symlink_to(sys.executable)
    for program in ("git", "sh", "dirname"):
        (commands / program).symlink_to(shutil.which(program))
    cloud.environment["PATH"] = str(commands)
    result = cloud.launch("true")
    assert result.returncode == 2 and "https://cloud.google.com/sdk/docs/install" in result.stderr


@pytest.mark.parametrize("name", ["launch", "status", "logs", "ssh", "delete"])
def test_every_command_has_help(cloud, name):
    result = cloud.run(name, "--help")
    assert result.returncode == 0 and f"usage: tpu/{name}" in result.stdout and "--dry-run" in result.stdout


def test_memory_names_the_run(cloud):
    cloud.launch("true", "--keep")
    (remembered,) = (cloud.folder / "home/.local/state/rlhf-tpu").glob("*.json")
    content = json.loads(remembered.read_text())
    assert content["collected"] and content["type"] == "v5e-16" and len(content["run_id"]) == 12
