"""The Slurm script, with a stand-in for srun and scontrol."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tpu" / "slurm" / "job.sh"


@pytest.fixture
def slurm(tmp_path) -> dict[str, str]:
    """An environment in which srun runs the command once and scontrol notes what it is asked."""
    (tmp_path / "srun").write_text('#!/bin/sh\nshift\nexec "$@"\n')
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol.txt\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "SLURM_SUBMIT_DIR": str(tmp_path)}


def test_the_exit_status_is_the_programs_and_the_run_id_the_jobs(slurm):
    words = [SCRIPT, "sh", "-c", "echo $WANDB_RUN_ID $WANDB_RESUME; exit 3"]
    result = subprocess.run(words, env=slurm, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (3, "slurm-17 allow\n")
    assert not (Path(slurm["SLURM_SUBMIT_DIR"]) / "scontrol.txt").exists()


def test_when_the_time_is_over_the_program_saves_and_the_job_goes_back_into_the_queue(slurm):
    program = "trap 'echo saved; exit 143' TERM; echo up; while true; do sleep 0.05; done"
    process = subprocess.Popen([SCRIPT, "sh", "-c", program], env=slurm, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and output.startswith("saved\n")
    assert (Path(slurm["SLURM_SUBMIT_DIR"]) / "scontrol.txt").read_text() == "requeue 17\n"


def test_dry_run_help_and_a_call_outside_of_slurm(slurm):
    del slurm["SLURM_JOB_ID"]
    outside = subprocess.run([SCRIPT, "true"], env=slurm, capture_output=True, text=True)
    assert outside.returncode == 2 and "sbatch" in outside.stderr
    shown = subprocess.run([SCRIPT, "rlhf", "a b"], env={**slurm, "RLHF_DRY_RUN": "1"}, capture_output=True, text=True)
    assert shown.stdout == "srun --kill-on-bad-exit=1 rlhf a\\ b \n"
    assert "sbatch --nodes=2" in subprocess.run([SCRIPT, "--help"], env=slurm, capture_output=True, text=True).stdout
