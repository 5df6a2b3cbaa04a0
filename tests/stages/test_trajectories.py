"""Losses and gradient norms of small runs, held to stored ones: a change of the mathematics shows, wherever it was made.

The runs depend on nothing but the code: their data stand here. After a change that is meant, write the courses anew with
`RLHF_WRITE_TRAJECTORIES=1 pytest tests/stages/test_trajectories.py`, and say in the commit why they changed.
"""

import json
import os
from pathlib import Path

import pytest
from flax import nnx

from rlhf.config_files import load_config
from rlhf.data.templates import apply_template
from rlhf.data.tokenizers import train_tokenizer
from rlhf.models.config import ModelConfig
from rlhf.models.hub import save_transformer
from rlhf.models.transformer import Transformer
from rlhf.stages import dpo, ppo, reward

STORED = Path(__file__).parent / "trajectories"
# Wide enough for another processor's rounding, narrow enough for any other formula.
TOLERANCE = 2e-3
COMPARISONS = [
    {"prompt": f"What is {a} plus {b}?", "chosen": f"It is {a + b}.", "rejected": f"I think {a} and {b} are numbers."}
    for a in range(4)
    for b in range(4)
]
TRAINING = {
    "data.path": "comparisons",
    "max_length": 96,
    "optimizer.learning_rate": 3e-3,
    "loop.steps": 6,
    "loop.batch_size": 8,
    "mesh.data": 1,
}
RUNS = {
    "reward": (reward, TRAINING | {"loop.batch_size": 2, "row_length": 96}, ["loss", "grad_norm"]),
    "dpo": (dpo, TRAINING | {"beta": 0.3}, ["loss", "grad_norm", "reward_margin"]),
    "ppo": (
        ppo,
        {
            "data.path": "comparisons",
            "rules": ["length_near:3"],
            "iterations": 4,
            "ppo.rollout_batch_size": 16,
            "ppo.minibatch_size": 8,
            "ppo.epochs": 2,
            "ppo.response_length": 8,
            "policy_optimizer.learning_rate": 3e-3,
            "value_optimizer.learning_rate": 3e-3,
            "evaluate_every": 0,
            "mesh.data": 1,
        },
        ["loss/policy_avg", "loss/value_avg", "policy/grad_norm", "val/grad_norm", "objective/kl", "objective/scores"],
    ),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folder of an untrained policy, and the file of the comparisons."""
    folder = tmp_path_factory.mktemp("trajectories")
    texts = [text for row in COMPARISONS for text in row.values()]
    tokenizer = train_tokenizer(texts, 300)
    apply_template(tokenizer, "user_ai")
    architecture = ModelConfig(
        vocab_size=300, width=16, layers=2, heads=2, kv_heads=1, mlp_width=24, context=128, initializer_std=0.3
    )
    save_transformer(Transformer(architecture, rngs=nnx.Rngs(0)), folder / "policy", tokenizer)
    comparisons = folder / "comparisons.jsonl"
    comparisons.write_text("".join(json.dumps(row) + "\n" for row in COMPARISONS), encoding="utf-8")
    return {"policy": str(folder / "policy"), "comparisons": str(comparisons)}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_takes_the_course_that_is_stored(name, places, tmp_path):
    stage, settings, measures = RUNS[name]
    settings = settings | {"output": str(tmp_path), "model.init_from": "policy"}
    values = {key: places.get(value, value) if isinstance(value, str) else value for key, value in settings.items()}
    spelt = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]
    stage.run(load_config(stage.Config, [], spelt))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    course = {measure: [line[measure] for line in lines if measure in line] for measure in measures}
    file = STORED / f"{name}.json"
    if os.environ.get("RLHF_WRITE_TRAJECTORIES"):
        file.write_text(json.dumps(course, indent=1) + "\n", encoding="utf-8")
    stored = json.loads(file.read_text(encoding="utf-8"))
    assert course.keys() == stored.keys()
    for measure, values in course.items():
        assert values == pytest.approx(stored[measure], rel=TOLERANCE, abs=TOLERANCE * 0.1), measure
