"""Each preset resolves without unknown keys, to the numbers that its paper gives."""

from pathlib import Path

import pytest

from rlhf.config_files import load_config
from rlhf.stages import ppo

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "ppo"
PAPER = {
    "ziegler": {"kl.coefficient": 0.15, "kl.horizon": 10_000, "minimum_length": 16, "whiten_rewards": True},
    "tldr": {"kl.coefficient": 0.05, "response_length": 53, "missing_end_score": -1.0, "temperature": 0.7},
    "instructgpt": {"kl.coefficient": 0.02, "pretraining_coefficient": 27.8, "average_decay": 0.992, "minibatches": 8},
    "hh": {"kl.coefficient": 0.001, "gae_decay": 1.0},
    "llama2": {"kl.coefficient": 0.01, "combine.threshold": 0.15, "minibatch_size": 64, "epochs": 1},
    "rloo": {"advantage": "rloo", "average": "constant", "clip_range": None, "needs_value_model": False},
    "grpo": {"advantage": "grpo", "average": "responses", "samples_per_prompt": 64, "kl.place": "loss"},
    "dr_grpo": {"advantage": "dr_grpo", "average": "constant", "kl.coefficient": 0.0},
    "reinforce": {"advantage": "reinforce", "minibatches": 1, "whitens_advantages": False},
    "safe_rlhf": {"combine.kind": "lagrangian", "combine.lagrangian.maximum": 5.0},
}


def test_every_preset_is_listed_above():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(PAPER)


@pytest.mark.parametrize("name", PAPER)
def test_it_resolves_to_the_papers_numbers(name):
    overrides = [
        "model.init_from=policy",
        "helpfulness=reward",
        "data.path=prompts.jsonl",
        "pretraining_data.path=text",
    ]
    config = load_config(ppo.Config, [FOLDER / f"{name}.yaml"], overrides)
    assert config.helpfulness == "reward"
    for key, expected in PAPER[name].items():
        value = config.ppo
        for part in key.split("."):
            value = getattr(value, part)
        assert value == expected, key
