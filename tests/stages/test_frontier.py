"""The frontier of made-up runs whose curves are known."""

import json
import math

import numpy as np
import pytest

from rlhf import cli
from rlhf.errors import UserError
from rlhf.stages import frontier
from rlhf.stages.held_out_check import standard_error

N = [1, 2, 4, 8, 16, 32]


def bound(n):
    return math.log(n) - (n - 1) / n


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """PPO with gold d (1 − 0.2 log d) + 0.3 beside best-of-n with gold d (2 − 0.5 d) + 0.3; one check without errors."""
    run = tmp_path_factory.mktemp("runs") / "demo"
    for stage in ("ppo", "best_of_n", "sft"):
        (run / stage).mkdir(parents=True)
    (run / "sft" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    lines = []
    for step, kl in enumerate([0.0, 0.5, 1.0, 2.0, 4.0]):
        distance = math.sqrt(kl)
        gold = 0.3 + distance * (1 - 0.2 * math.log(distance or 1.0))
        line = {"step": step, "held_out/kl": kl, "held_out/reward": 2 * distance, "held_out/gold_score": gold}
        lines.append(line | {"held_out_error/reward": 0.01, "held_out_error/gold_score": 0.01})
        lines.append({"step": step + 0.5, "loss": 1.0})
    (run / "ppo" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = {}
    for n in N:
        distance = math.sqrt(bound(n))
        reward, gold = 1.5 * distance, 0.3 + distance * (2 - 0.5 * distance)
        interval = {"reward": reward, "gold_score": gold}
        curve[f"best_of_{n}"] = {"n": n, "kl": {"value": bound(n)}, "kl_estimate": {"value": 0.5 * bound(n)}} | {
            name: {"value": value, "low": value - 0.0196, "high": value + 0.0196} for name, value in interval.items()
        }
    (run / "best_of_n" / "best_of_n.json").write_text(json.dumps(curve))
    return run


def test_fits_and_winners_come_out_as_they_were_put_in(pipeline, tmp_path, capsys):
    output = tmp_path / "out"
    assert cli.main(["frontier", str(pipeline), f"--output={output}", "--kl=[1.0]"]) == 0
    result = json.loads((output / "frontier.json").read_text())
    assert list(result["runs"]) == ["best_of_n", "ppo"] and result["warnings"] == []
    fit = result["runs"]["ppo"]["fits"]["gold_score"]
    assert (fit["alpha"], fit["beta"]) == pytest.approx((1.0, 0.2)) and fit["peak_kl"] == pytest.approx(math.exp(8))
    fit = result["runs"]["best_of_n"]["fits"]["gold_score"]
    assert (fit["alpha"], fit["beta"]) == pytest.approx((2.0, 0.5)) and fit["peak_kl"] == pytest.approx(4.0)
    (row,) = result["equal_kl"]["gold_score"]
    assert row["winner"] == "best_of_n" and row["clear"] and row["lead"] == pytest.approx(0.5, abs=0.02)
    assert result["equal_kl"]["reward"][0]["winner"] == "ppo"
    page = (output / "frontier.md").read_text()
    assert "| 1.00 |" in page and "**ppo** is ahead at 1.00 nats, clearly (95 %) at 1 of 1." in page
    assert (output / "frontier.png").stat().st_size > 10_000 and "</svg>" in (output / "frontier.svg").read_text()
    assert "gold (gold_score) at equal KL" in capsys.readouterr().err


def test_the_estimated_kl_and_other_measures_can_be_asked_for(pipeline, tmp_path):
    config = frontier.Config(
        runs=[str(pipeline / "best_of_n"), str(pipeline / "ppo")],
        output=str(tmp_path / "out"),
        best_of_n_kl="estimate",
        proxy="gold_score",
        gold="missing",
        fit=False,
    )
    result = frontier.run(config)
    entry = result["runs"]["best_of_n"]
    assert entry["points"]["gold_score"][-1]["kl"] == pytest.approx(0.5 * bound(32))
    assert entry["points"]["missing"] == [] and entry["fits"]["gold_score"] is None


def test_runs_measured_on_other_prompts_are_told_apart_and_compared_by_gain(pipeline, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    lines = [json.loads(line) for line in (pipeline / "ppo" / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line["held_out/reward"] = line.get("held_out/reward", 0) + 5.0
    (other / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    runs = [str(pipeline / "ppo"), str(other)]
    config = frontier.Config(runs=runs, output=str(tmp_path / "out"), kl=[1.0])
    (warning,) = frontier.run(config)["warnings"]
    assert "differ in reward (0.000 and 5.000)" in warning
    relative = frontier.run(frontier.Config(runs=runs, output=str(tmp_path / "out"), kl=[1.0], relative=True))
    assert relative["equal_kl"]["reward"][0]["lead"] == pytest.approx(0.0) and relative["warnings"] == []


def test_folders_without_a_curve_are_refused(pipeline, tmp_path):
    for runs, said in (([], "runs is empty"), (["/nowhere"], "no folder"), ([str(pipeline / "sft")], "no curve")):
        with pytest.raises(UserError, match=said):
            frontier.run(frontier.Config(runs=runs, output=str(tmp_path)))


def test_errors_of_checks_leave_out_what_is_undefined():
    assert standard_error(np.array([1.0, np.nan, 3.0, 5.0])) == pytest.approx(2.0 / math.sqrt(3))
    assert standard_error(np.array([1.0, np.nan])) == 0.0
