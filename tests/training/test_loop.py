import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from rlhf.errors import UserError
from rlhf.training.checkpoint import Checkpointer
from rlhf.training.loop import LoopConfig, fit, resolve_steps
from rlhf.training.optimizer import OptimizerConfig
from rlhf.training.signals import Interrupted

STEPS = 12


@pytest.fixture
def train(tiny, tmp_path):
    """Runs `fit` on the tiny problem in a folder of the given name."""

    def run(
        name="run",
        *,
        batches_from=tiny.batches_from,
        learning_rate=0.02,
        total_steps=STEPS,
        seed=0,
        options=None,
        **loop,
    ):
        return fit(
            tiny.make_model(),
            tiny.loss,
            batches_from,
            total_steps=total_steps,
            optimizer_config=OptimizerConfig(learning_rate=learning_rate),
            loop_config=LoopConfig(**{"evaluate_every": 4, "checkpoint_every": 3, "log_every": 5, **loop}),
            folder=tmp_path / name,
            fingerprint={"seed": seed},
            **{"evaluation_batches": tiny.held_out, **(options or {})},
        )

    return run


def lines(path: Path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def stop_at(tiny, step, number=signal.SIGTERM):
    """Batches that send this process a signal while `step` is being prepared."""

    def batches_from(start):
        for index, batch in enumerate(tiny.batches_from(start), start + 1):
            if index == step:
                os.kill(os.getpid(), number)
            yield batch

    return batches_from


def parameters(result, tiny):
    from flax import nnx

    return tiny.bits(nnx.state(result.model, nnx.Param))


def test_learns_and_logs_a_line_for_every_step(train, tmp_path):
    result = train()
    records = lines(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(STEPS + 1))
    assert records[0].keys() == {"step", "held_out_loss", "held_out_abs_error"}
    assert [record["step"] for record in records if "held_out_loss" in record] == [0, 4, 8, 12]
    expected = {"step", "loss", "weight", "grad_norm", "learning_rate", "skipped", "abs_error"}
    assert records[1].keys() == expected
    assert records[-1]["held_out_loss"] < records[0]["held_out_loss"]
    assert [record["step"] for record in lines(tmp_path / "run" / "timings.jsonl")][-1] == STEPS
    summary = result.summary
    assert summary["steps"] == STEPS and summary["loss"] == pytest.approx(records[-1]["loss"])
    assert summary["held_out_loss"] == records[-1]["held_out_loss"]
    assert summary["seconds"] > 0 and summary["tokens_per_second"] > 0 and summary["compilations"] > 0
    assert summary["tokens"] == sum(record["weight"] for record in records[1:])


def test_held_out_loss_is_weighted_exactly(train, tiny, tmp_path):
    train(total_steps=1)
    [record] = [record for record in lines(tmp_path / "run" / "metrics.jsonl") if record["step"] == 0]
    sums = [tiny.loss(tiny.make_model(), batch)[:2] for batch in tiny.held_out()]
    expected = sum(float(total) for total, _ in sums) / sum(float(weight) for _, weight in sums)
    mean_of_means = np.mean([float(total / weight) for total, weight in sums])
    assert record["held_out_loss"] == pytest.approx(expected, rel=1e-6)
    assert record["held_out_loss"] != pytest.approx(mean_of_means, rel=1e-4)


@pytest.mark.parametrize("step", [1, 7, 12])
def test_interrupted_and_continued_equals_uninterrupted(train, tiny, tmp_path, step):
    whole = train("whole")
    with pytest.raises(Interrupted) as interruption:
        train("parts", batches_from=stop_at(tiny, step))
    assert interruption.value.step == step and interruption.value.exit_code == 143
    assert "run the same command to continue" in str(interruption.value)
    parts = train("parts")
    assert parameters(parts, tiny) == parameters(whole, tiny)
    name = "metrics.jsonl"
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for key in ("loss", "held_out_loss", "best_held_out_loss", "best_step", "selected_step", "tokens", "skipped_steps"):
        assert parts.summary[key] == whole.summary[key], key


def test_crash_after_a_checkpoint_continues_from_it(train, tiny, tmp_path):
    def broken_from(start):
        for index, batch in enumerate(tiny.batches_from(start), start + 1):
            if index == 9:
                raise RuntimeError("lost the data")
            yield batch

    whole = train("whole")
    with pytest.raises(RuntimeError, match="lost the data"):
        train("parts", batches_from=broken_from)
    started = []

    def watched_from(start):
        started.append(start)
        return tiny.batches_from(start)

    parts = train("parts", batches_from=watched_from)
    assert started == [8]
    assert parameters(parts, tiny) == parameters(whole, tiny)
    name = "metrics.jsonl"
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_finished_run_is_not_trained_again(train, tiny, tmp_path):
    first = train()
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()

    def no_batches(start):
        raise AssertionError("asked for data")

    again = train(batches_from=no_batches)
    assert parameters(again, tiny) == parameters(first, tiny)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert again.summary["loss"] == first.summary["loss"]


def test_keyboard_interrupt_exit_code(train, tiny):
    with pytest.raises(Interrupted) as interruption:
        train(batches_from=stop_at(tiny, 2, signal.SIGINT))
    assert interruption.value.exit_code == 130


def worse_after_step_four(tiny):
    """Targets turn round after step 2; with momentum, the evaluation at step 4 is the last to find a lower loss."""

    def batches_from(start):
        for index, batch in enumerate(tiny.batches_from(start), start + 1):
            yield batch if index <= 2 else {**batch, "y": -10 * batch["y"]}

    return batches_from


def test_best_or_last_parameters_are_returned(train, tiny):
    four = train("four", total_steps=STEPS, batches_from=worse_after_step_four(tiny), select="best", learning_rate=0.05)
    last = train("last", total_steps=STEPS, batches_from=worse_after_step_four(tiny), select="last", learning_rate=0.05)
    assert four.summary["best_step"] == last.summary["best_step"] == 4
    assert four.summary["selected_step"] == 4 and last.summary["selected_step"] == STEPS
    assert four.summary["best_held_out_loss"] < four.summary["held_out_loss"]

    def held_out_loss(result):
        sums = [tiny.loss(result.model, batch)[:2] for batch in tiny.held_out()]
        return sum(float(total) for total, _ in sums) / sum(float(weight) for _, weight in sums)

    assert held_out_loss(four) == pytest.approx(four.summary["best_held_out_loss"], rel=1e-5)
    assert held_out_loss(last) == pytest.approx(last.summary["held_out_loss"], rel=1e-5)


def test_without_held_out_data(train, tmp_path):
    result = train(options={"evaluation_batches": None})
    assert result.summary["best_step"] is None and result.summary["selected_step"] == STEPS
    assert [record["step"] for record in lines(tmp_path / "run" / "metrics.jsonl")] == list(range(1, STEPS + 1))


def test_gives_up_after_consecutive_skipped_steps(train, tiny, tmp_path):
    def spoiled_from(start):
        for index, batch in enumerate(tiny.batches_from(start), start + 1):
            yield {**batch, "x": batch["x"] * np.inf} if index in (2, 5, 6, 7, 8) else batch

    with pytest.raises(UserError) as error:
        train(batches_from=spoiled_from, max_skipped_steps=3, evaluate_every=None)
    message = str(error.value)
    assert "step 7" in message and "the loss was not finite" in message and "learning_rate" in message
    records = lines(tmp_path / "run" / "metrics.jsonl")
    assert records[-1]["step"] == 7 and records[-1]["loss"] is None and records[-1]["skipped"] == 3
    assert train("patient", batches_from=spoiled_from, max_skipped_steps=5).summary["skipped_steps"] == 5


def test_another_configuration_is_refused(train):
    train()
    with pytest.raises(UserError, match=r"seed: checkpoint 0, now 1"):
        train(seed=1)
    with pytest.raises(UserError, match=r"optimizer.learning_rate: checkpoint 0.02, now 0.5"):
        train(learning_rate=0.5)


def test_data_that_ends_early_is_an_error(train, tiny):
    with pytest.raises(UserError, match="ended before step 3 of 12"):
        train(batches_from=lambda start: iter([tiny.batch_at(0), tiny.batch_at(1)]))


def test_hook_place_and_token_callbacks(train, tiny, tmp_path):
    placed = []

    def place(batch):
        placed.append(1)
        return batch

    def sample(model, step, tracker):
        tracker.table("samples", step, [{"output": float(model(tiny.batch_at(0)["x"])[0])}])

    options = {"after_evaluation": sample, "place_batch": place, "count_tokens": lambda batch: 100}
    result = train(options=options)
    assert result.summary["tokens"] == 100 * STEPS
    assert len(placed) == STEPS + 4 * len(tiny.held_out())
    assert [row["step"] for row in lines(tmp_path / "run" / "samples.jsonl")] == [0, 4, 8, 12]


def test_keeps_the_newest_and_the_best_checkpoint(train, tmp_path, tiny):
    train(batches_from=worse_after_step_four(tiny), learning_rate=0.05, keep_checkpoints=2)
    with Checkpointer(tmp_path / "run" / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [4, 9, 12] and checkpoints.best_step == 4


def test_resolve_steps():
    assert resolve_steps(LoopConfig(steps=7), 100) == 7
    assert resolve_steps(LoopConfig(epochs=2.5, batch_size=10, micro_batches=2), 45) == 10
    for config in (LoopConfig(), LoopConfig(steps=1, epochs=1)):
        with pytest.raises(UserError, match="either steps or epochs"):
            resolve_steps(config, 100)
    with pytest.raises(UserError, match="only 5 training rows"):
        resolve_steps(LoopConfig(steps=1), 5)


@pytest.mark.parametrize("options", [{"batch_size": 6, "micro_batches": 4}, {"log_every": 0}, {"epochs": -1.0}])
def test_impossible_loop_config_is_refused(options):
    with pytest.raises(UserError, match=r"loop\."):
        LoopConfig(**options)


SLOW_TRAINING = """
    import importlib.util, sys, time
    spec = importlib.util.spec_from_file_location("problem", sys.argv[1])
    problem = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(problem)
    from flax import nnx
    from rlhf.training.loop import LoopConfig, fit
    from rlhf.training.optimizer import OptimizerConfig
    from rlhf.training.signals import Interrupted

    def slow_batches_from(start):
        for batch in problem.batches_from(start):
            time.sleep(0.02)
            yield batch

    try:
        fit(
            problem.Regression(nnx.Rngs(0)), problem.squared_error, slow_batches_from, total_steps=100000,
            optimizer_config=OptimizerConfig(), loop_config=LoopConfig(log_every=2), folder=sys.argv[2], fingerprint={},
        )
    except Interrupted as interruption:
        print(interruption.step, interruption)
        sys.exit(interruption.exit_code)
"""


def test_sigterm_of_a_real_process(tmp_path):
    problem = Path(__file__).parent / "conftest.py"
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLOW_TRAINING), str(problem), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors[-3000:]
    step = int(output.split()[0])
    assert lines(metrics)[-1]["step"] == step
    with Checkpointer(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [step]
