"""The table on the console."""

import io

from rich.console import Console

from rlhf.report.summary_table import print_summary


def printed(summary, **arguments) -> str:
    console = Console(file=io.StringIO(), width=100)
    print_summary(summary, console=console, **arguments)
    return console.file.getvalue()


def test_policies_come_in_order_with_half_their_interval():
    policies = {
        name: {"gold_score": {"value": value, "low": value - 0.02, "high": value + 0.02}, "kl": 1.5}
        for name, value in {"ppo": 0.9, "best_of_16": 0.8, "best_of_4": 0.7, "sft": 0.5}.items()
    }
    text = printed({"policies": policies, "reward_models": {"safety": {"accuracy": 0.8, "accuracy_limit": 0.9}}})
    places = [text.index(name) for name in ("SFT", "best of 4", "best of 16", "PPO")]
    assert places == sorted(places)
    assert "0.90 ±0.02" in text
    assert "safety reward model: accuracy 80.0% of 90.0% attainable" in text


def test_measures_that_nobody_has_make_no_column():
    assert "gold" not in printed({"policies": {"sft": {"reward": 1.0}}})


def test_next_commands_name_the_latest_model(tmp_path):
    (tmp_path / "sft" / "model").mkdir(parents=True)
    assert f"rlhf generate --model.init_from={tmp_path}/sft" in printed({}, report=tmp_path / "report.html")
    assert printed({}) == ""
