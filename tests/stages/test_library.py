"""The stages as a paper's code uses them: without command line, YAML or files of data."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from rlhf.data.sources import DataConfig
from rlhf.models.source import ModelSource
from rlhf.parallel.mesh import MeshConfig
from rlhf.rewards.text import RewardModel
from rlhf.stages import reward
from rlhf.training.loop import LoopConfig
from rlhf.training.optimizer import OptimizerConfig

COMPARISONS = [
    {"prompt": f"Question {number}?", "chosen": f"Answer {number}.", "rejected": "No idea."} for number in range(12)
]
HELD_OUT = [{"prompt": f"Riddle {number}?", "chosen": "Here it is.", "rejected": "Not telling."} for number in range(5)]


@pytest.fixture
def config(folders, tmp_path) -> reward.Config:
    return reward.Config(
        output=str(tmp_path / "out"),
        model=ModelSource(init_from=folders.policy),
        data=DataConfig(held_out=0.4),
        max_length=128,
        optimizer=OptimizerConfig(learning_rate=1e-2),
        loop=LoopConfig(steps=3, epochs=None, batch_size=4),
        mesh=MeshConfig(data=1),
    )


@pytest.fixture
def scored(monkeypatch):
    """What the stage itself scores on held-out comparisons, with the comparisons."""
    caught = []
    original = reward.score_comparisons

    def catching(scorer, tokenizer, comparisons, batch_size):
        scores = original(scorer, tokenizer, comparisons, batch_size)
        caught.append((list(comparisons), scores))
        return scores

    monkeypatch.setattr(reward, "score_comparisons", catching)
    return caught


def test_a_reward_model_from_records_in_memory_scores_as_it_did_in_training(config, scored):
    summary = reward.run(config, comparisons=COMPARISONS)
    ((comparisons, (chosen, rejected)),) = scored
    assert summary["evaluation"]["pairs"] == len(comparisons) > 0
    model = RewardModel.load(config.output)
    prompts = [pair.prompt for pair in comparisons]
    np.testing.assert_allclose(model.score(prompts, [pair.chosen for pair in comparisons]), chosen, atol=1e-5)
    np.testing.assert_allclose(model.score(prompts, [pair.rejected for pair in comparisons]), rejected, atol=1e-5)


def test_held_out_data_is_read_from_its_own_source_beside_records_in_memory(config, scored, tmp_path):
    path = tmp_path / "held_out.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in HELD_OUT), encoding="utf-8")
    reward.run(replace(config, evaluation_data=DataConfig(path=str(path))), comparisons=COMPARISONS)
    ((comparisons, _),) = scored
    assert [pair.prompt[-1].content for pair in comparisons] == [record["prompt"] for record in HELD_OUT]


def test_formulas_can_be_imported_without_anything_else():
    code = (
        "import sys; from rlhf.losses import clipped_surrogate; "
        "print([name for name in ('wandb', 'datasets', 'transformers', 'jsonargparse', 'grain') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
