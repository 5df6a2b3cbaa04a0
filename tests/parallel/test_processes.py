"""How a process finds the others of its run, and what it says when it does not; runs of several are in tests/stages/processes."""

import socket
import subprocess
import sys

import pytest

from rlhf.errors import UserError
from rlhf.parallel.processes import ProcessesConfig, completed, joined, names_several_processes, start, wait_for_all

ALONE = ProcessesConfig()
SLURM = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "16", "SLURM_PROCID": "3"}


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        (SLURM, True),
        (SLURM | {"SLURM_NTASKS": "1"}, False),
        (SLURM | {"RLHF_DISTRIBUTED": "0"}, False),
        ({"SLURM_NTASKS": "16"}, False),  # in the script of sbatch, outside of srun
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"MEGASCALE_NUM_SLICES": "2"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),  # so is every notebook of a cluster
        ({"RLHF_DISTRIBUTED": "1"}, True),
    ],
)
def test_what_the_environment_says(environment, several):
    assert names_several_processes(environment) is several
    assert completed(ALONE, environment).detect is several


def test_keys_win_over_the_environment():
    environment = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}
    found = completed(ALONE, environment | SLURM)
    assert (found.coordinator, found.count, found.index, found.detect) == ("a:1", 4, 2, False)
    found = completed(ProcessesConfig(coordinator="b:2", count=3, index=0), environment)
    assert (found.coordinator, found.count, found.index) == ("b:2", 3, 0)
    assert completed(ALONE, {"JAX_COORDINATOR_ADDRESS": "a:1"} | SLURM).detect is True


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"coordinator": "a:1", "count": 2}, r"processes.index None"),
        ({"coordinator": "a:1", "count": 2, "index": 2}, r"processes.index 2[\s\S]*below it"),
        ({"coordinator": "a", "count": 2, "index": 1}, r"no port"),
        ({"count": 0}, r"processes.count is 0"),
        ({"silence_timeout": 0}, r"processes.silence_timeout"),
    ],
)
def test_settings_that_cannot_be(keys, message):
    with pytest.raises(UserError, match=message):
        completed(ProcessesConfig(**keys), {})


def test_an_environment_that_cannot_be():
    with pytest.raises(UserError, match="JAX_PROCESS_ID is 'first'"):
        completed(ALONE, {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "first"})


def test_a_process_that_is_alone_does_nothing(monkeypatch):
    monkeypatch.setenv("RLHF_DISTRIBUTED", "0")
    assert start(ALONE) is False
    with joined(ALONE):
        wait_for_all("nobody")


def test_processes_that_do_not_come_are_waited_for_within_bounds():
    """Process 1 of 2, where nobody is process 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free_port = probe.getsockname()[1]
    keys = [f"--processes.coordinator=127.0.0.1:{free_port}", "--processes.count=2", "--processes.index=1"]
    program = "import sys; from rlhf.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "sft", *keys, "--processes.start_timeout=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr[-2000:]
    assert f"process 1 of 2 did not come together with the others at 127.0.0.1:{free_port}" in done.stderr
    assert "What to do: see that all processes run" in done.stderr
