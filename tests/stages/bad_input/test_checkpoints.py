"""Checkpoints of another configuration, damaged checkpoints, and training that loses its numbers."""

import json
import shutil

import pytest

# Orbax leaves its coroutines and event loop unfinished when a read fails.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning"
)


def cut_short(checkpoint) -> None:
    """Halves every file of a checkpoint's arrays."""
    files = [path for path in (checkpoint / "state").rglob("*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def contents(folder) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_another_configuration_is_refused_by_its_keys(run, refused):
    rate = {"sft": "optimizer.learning_rate", "ppo": "policy_optimizer.learning_rate"}[run.command]
    message = refused(
        run.command,
        run.settings | {rate: 0.5, "seed": 7},
        f"the checkpoints in {run.folder} were made with another configuration",
        f"    {rate}: checkpoint 0.0003, now 0.5\n    seed: checkpoint 0, now 7\n",
        "choose another output folder, set these keys back, or delete",
    )
    assert message.count("checkpoint 0") == 2
    assert contents(run.folder) == contents(run.finished)


def test_another_model_is_refused(run, refused, tmp_path, tiny):
    shutil.copytree(tiny.policy, tmp_path / "policy")
    settings = run.settings | {"model.init_from": tmp_path / "policy"}
    refused(run.command, settings, f"model.init_from: checkpoint {tiny.policy}, now {tmp_path}/policy")


def test_a_damaged_checkpoint_is_passed_over(run, rlhf):
    cut_short(run.checkpoint(4))
    run.forget("model", "summary.json")
    finished = rlhf(run.command, run.settings)
    assert finished.status == 0 and "Traceback" not in finished.message
    assert f"Checkpoint 4 in {run.folder}/checkpoints cannot be read" in finished.message
    assert "Continuing from checkpoint 3 instead; the unreadable ones are put aside." in finished.message
    assert run.same_result()
    assert run.checkpoint(4).is_dir() and (run.folder / "checkpoints" / "4.unreadable").is_dir()


def test_damaged_checkpoints_only(run, refused):
    cut_short(run.checkpoint(3))
    cut_short(run.checkpoint(4))
    before = contents(run.folder / "checkpoints") | contents(run.folder / "model")
    found = f"none of the checkpoints in {run.folder}/checkpoints can be read"
    refused(
        run.command, run.settings, found, "\n    4: ", "\n    3: ", f"delete {run.folder}/checkpoints to train from"
    )
    assert contents(run.folder / "checkpoints") | contents(run.folder / "model") == before


@pytest.mark.parametrize(
    ("command", "changes", "parts"),
    [
        (
            "sft",
            {"optimizer.learning_rate": 1e30, "loop.steps": 12, "loop.checkpoint_every": 2},
            [
                "training stopped at step 6",
                "was not finite",
                "5 updates in a row were skipped",
                "lower optimizer.learning_rate",
            ],
        ),
        (
            "ppo",
            {"policy_optimizer.learning_rate": 1e30, "iterations": 12, "checkpoint_every": 1},
            ["ppo iteration 3", "5 updates in a row", "not finite", "lower policy_optimizer.learning_rate", "intact"],
        ),
    ],
)
def test_numbers_that_are_lost(refused, working, tmp_path, command, changes, parts):
    refused(command, working[command] | changes, *parts)
    folder = tmp_path / "out"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [int(path.name) for path in (folder / "checkpoints").iterdir()]
    assert steps and max(steps) < 6 and max(steps) <= lines[-1]["step"]
    assert not (folder / "model").exists() and not (folder / "summary.json").exists()
