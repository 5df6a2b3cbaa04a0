"""The manifest that tpu/kubernetes/render prints."""

import subprocess

import pytest
import yaml
from launcher.kubernetes import main, manifest
from launcher.problems import LaunchError

SETTINGS = {"slices": 2, "spot": True, "restarts": 3, "service_account": "trainer"}
PROGRAM = ["rlhf", "ppo", "--output=gs://one/a", "--data.path=gs://two/b c"]


def test_one_pod_a_machine_and_one_job_a_slice():
    content = yaml.safe_load(manifest("pilot", "v5e-16", "image", PROGRAM, **SETTINGS))
    (job,) = content["spec"]["replicatedJobs"]
    assert job["replicas"] == 2 and content["spec"]["failurePolicy"]["maxRestarts"] == 3
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == 4 and spec["completionMode"] == "Indexed"
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["command"] == ["rlhf", "ppo", "--output=/mnt/gcs/one/a", "--data.path=/mnt/gcs/two/b c"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/mnt/gcs/one", "/mnt/gcs/two"]
    assert [volume["csi"]["volumeAttributes"]["bucketName"] for volume in pod["volumes"]] == ["one", "two"]
    assert pod["serviceAccountName"] == "trainer"


def test_the_wandb_run_is_that_of_the_experiment():
    def run_id(name: str, program: list[str]):
        content = yaml.safe_load(manifest(name, "v5e-8", "image", program, **SETTINGS))
        pod = content["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        return {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}.get("WANDB_RUN_ID")

    assert run_id("pilot", PROGRAM) == run_id("pilot", PROGRAM) != run_id("other", PROGRAM)
    assert run_id("pilot", ["rlhf", "pipeline"]) is None


def test_render_prints_it_or_says_what_is_wrong(capsys):
    assert main(["pilot", "--type=v5e-1", "--image=i", "--", "rlhf", "sft"]) == 0
    content = yaml.safe_load(capsys.readouterr().out)
    pod = content["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert "cloud.google.com/gke-spot" not in pod["nodeSelector"] and pod["volumes"] == []
    assert main(["pilot", "--type=v5e-3", "--image=i", "--", "rlhf"]) == 2
    assert "v5e-4" in capsys.readouterr().err
    with pytest.raises(LaunchError, match="lower-case"):
        manifest("Pilot_1", "v5e-1", "image", PROGRAM, **SETTINGS)


def test_the_command_has_help(repository):
    result = subprocess.run([repository / "tpu/kubernetes/render", "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and "usage: tpu/kubernetes/render" in result.stdout and "--type" in result.stdout
