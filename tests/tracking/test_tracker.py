import json
import math
import os
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf.errors import UserError
from rlhf.tracking import tracker as tracker_module
from rlhf.tracking.jsonl import to_json_value
from rlhf.tracking.tracker import Tracker, TrackingConfig

OFF = TrackingConfig()


def read(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_a_line_for_each_step_flushed_at_once(tmp_path):
    with Tracker(OFF, tmp_path / "new", {}) as tracker:
        tracker.log(1, {"loss": 0.5})
        assert read(tmp_path / "new" / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]
        tracker.log(2, {"loss": 0.25})
        assert len(read(tmp_path / "new" / "metrics.jsonl")) == 2


def test_numbers_that_are_not_finite_become_null(tmp_path):
    with Tracker(OFF, tmp_path, {}) as tracker:
        tracker.log(1, {"a": math.nan, "b": np.float32("inf"), "c": jnp.array(-jnp.inf), "d": 1.0})
    assert read(tmp_path / "metrics.jsonl") == [{"step": 1, "a": None, "b": None, "c": None, "d": 1.0}]


def test_float32_is_written_short_and_exact():
    for value in np.random.default_rng(0).normal(size=200).astype(np.float32):
        written = to_json_value(jnp.asarray(value))
        assert np.float32(written) == value and len(repr(written)) <= 15
    assert to_json_value(np.float64(0.1)) == 0.1
    assert to_json_value({"x": (np.int64(3), [np.bool_(True)], np.arange(2))}) == {"x": [3, [True], [0, 1]]}


def write_steps(folder, steps, resume_step=0):
    with Tracker(OFF, folder, {}, resume_step=resume_step) as tracker:
        for step in steps:
            tracker.log(step, {"loss": 1 / (step + 1)})
            if step % 2 == 0:
                tracker.table(
                    "samples", step, [{"prompt": "p", "output": f"答 {step}"}, {"prompt": "q", "output": "r"}]
                )


def test_continued_files_equal_uninterrupted_ones(tmp_path):
    write_steps(tmp_path / "whole", range(10))
    write_steps(tmp_path / "parts", range(7))
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    write_steps(tmp_path / "parts", range(5, 10), resume_step=4)
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert {path.name for path in (tmp_path / "parts").iterdir()} == {"metrics.jsonl", "samples.jsonl", "timings.jsonl"}


def test_fresh_run_starts_empty_files_but_leaves_those_of_others(tmp_path):
    (tmp_path / "documents.jsonl").write_text('{"text": "mine"}\n')
    write_steps(tmp_path, range(5))
    write_steps(tmp_path, range(2))
    assert [row["step"] for row in read(tmp_path / "metrics.jsonl")] == [0, 1]
    assert [row["step"] for row in read(tmp_path / "samples.jsonl")] == [0, 0]
    assert read(tmp_path / "documents.jsonl") == [{"text": "mine"}]


def test_timings_are_kept_apart(tmp_path):
    with Tracker(OFF, tmp_path, {}) as tracker:
        tracker.log(1, {"loss": 1.0})
        tracker.log_timings(1, {"seconds_per_step": 0.5})
    assert read(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]
    assert read(tmp_path / "timings.jsonl") == [{"step": 1, "seconds_per_step": 0.5}]


def test_only_the_primary_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(tracker_module, "is_primary_process", lambda: False)
    with Tracker(TrackingConfig(tensorboard=True, wandb="offline"), tmp_path / "x", {}) as tracker:
        tracker.log(1, {"loss": 1.0})
        tracker.log_timings(1, {"seconds": 1.0})
        tracker.table("samples", 1, [{"a": 1}])
        tracker.summarize({"loss": 1.0})
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("package", "config"),
    [("wandb", TrackingConfig(wandb="offline")), ("tensorboardX", TrackingConfig(tensorboard=True))],
)
def test_missing_package_says_what_to_install(tmp_path, monkeypatch, package, config):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"pip install {package}"):
        Tracker(config, tmp_path, {})


def test_tensorboard_event_files(tmp_path):
    with Tracker(TrackingConfig(tensorboard=True), tmp_path, {}) as tracker:
        tracker.log(3, {"reward": 1.5})
        tracker.table("samples", 3, [{"prompt": "high?", "output": "Everest"}])
        tracker.summarize({"loss": 1.0})
    [events] = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"reward" in content and b"Everest" in content and b"summary" in content


class FakeWandb:
    """Stands in for the package: keeps what it is given."""

    class Error(Exception):
        pass

    def __init__(self):
        self.runs = []

    def Table(self, columns, data):
        return {"columns": columns, "data": data}

    def init(self, **options):
        run = SimpleNamespace(options=options, logged=[], metrics=[], summary={}, exit_code=None)
        run.log = run.logged.append
        run.define_metric = lambda name, step_metric=None: run.metrics.append((name, step_metric))
        run.finish = lambda exit_code: setattr(run, "exit_code", exit_code)
        self.runs.append(run)
        return run


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    return fake


ONLINE = TrackingConfig(wandb="online", project="study", run_name="first")


def test_wandb_gets_metrics_tables_and_summary(tmp_path, wandb):
    with Tracker(ONLINE, tmp_path, {"seed": 1}) as tracker:
        tracker.log(2, {"loss": 0.5})
        tracker.log_timings(2, {"seconds": 0.1})
        tracker.table("samples", 2, [{"prompt": "p", "output": "o"}, {"prompt": "q", "score": 1}])
        tracker.summarize({"loss": 0.5})
    [run] = wandb.runs
    assert run.options["project"] == "study" and run.options["name"] == "first" and run.options["mode"] == "online"
    assert run.options["config"] == {"seed": 1} and ("*", "step") in run.metrics
    assert run.logged[:2] == [{"step": 2, "loss": 0.5}, {"step": 2, "time/seconds": 0.1}]
    assert run.logged[2]["samples"] == {
        "columns": ["prompt", "output", "score"],
        "data": [["p", "o", None], ["q", None, 1]],
    }
    assert run.summary == {"loss": 0.5} and run.exit_code == 0


def test_wandb_run_is_continued_under_its_id_and_a_fresh_one_is_not(tmp_path, wandb):
    for resume_step in (0, 5, 0):
        with pytest.raises(RuntimeError), Tracker(ONLINE, tmp_path, {}, resume_step=resume_step):
            raise RuntimeError
    first, continued, fresh = [run.options["id"] for run in wandb.runs]
    assert first == continued != fresh
    assert all(run.options["resume"] == "allow" and run.exit_code == 1 for run in wandb.runs)


def test_wandb_uses_the_id_of_a_sweep_agent(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "from-agent")
    Tracker(ONLINE, tmp_path, {}).close()
    assert wandb.runs[0].options["id"] == "from-agent"


def test_wandb_that_cannot_start_is_explained(tmp_path, wandb, monkeypatch):
    def refuse(**options):
        raise FakeWandb.Error("no key")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match=r"no key.*\n.*wandb login"):
        Tracker(ONLINE, tmp_path, {})


def test_wandb_offline_for_real(tmp_path):
    with Tracker(TrackingConfig(wandb="offline"), tmp_path, {"seed": 1}) as tracker:
        tracker.log(1, {"loss": 0.5})
        tracker.table("samples", 1, [{"prompt": "p"}])
        tracker.summarize({"loss": 0.5})
    run_id = (tmp_path / "wandb_run_id.txt").read_text().strip()
    assert any(run_id in name for name in os.listdir(tmp_path / "wandb"))
