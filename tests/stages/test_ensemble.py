"""An ensemble's folder where stages name a reward model: it is scored with, and a value model starts from it."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf.data.sources import DataConfig, load_prompts
from rlhf.models.ensemble import EnsembleScorer
from rlhf.models.heads import SequenceScorer
from rlhf.models.source import ModelSource
from rlhf.parallel.mesh import MeshConfig
from rlhf.rewards.model import score_sequences
from rlhf.rewards.text import RewardModel
from rlhf.stages import best_of_n, ensemble, ppo


@pytest.fixture(scope="module")
def folder(folders, tmp_path_factory) -> str:
    output = str(tmp_path_factory.mktemp("ensemble"))
    ensemble.run(ensemble.Config(output=output, members=[folders.helpfulness, folders.safety], combination="minimum"))
    return output


def test_best_of_n_chooses_by_it(folder, folders, world, tmp_path):
    data = DataConfig(path=str(world / "prompts_held_out.jsonl"))
    config = best_of_n.Config(
        output=str(tmp_path / "out"),
        model=ModelSource(init_from=folders.policy),
        helpfulness=folder,
        data=data,
        max_prompts=4,
        n=[2],
        response_length=4,
        batch_size=8,
        mesh=MeshConfig(data=1),
    )
    best_of_n.run(config)
    rows = [json.loads(line) for line in (Path(config.output) / "samples.jsonl").read_text().splitlines()]
    reward = np.array([row["helpfulness_score"] for row in rows])
    prompts = [prompt.messages for prompt in load_prompts(data)[:4] for _ in range(2)]
    single = [
        RewardModel.load(member).score(prompts, [row["response"] for row in rows])
        for member in (folders.helpfulness, folders.safety)
    ]
    again = RewardModel.load(folder).score(prompts, [row["response"] for row in rows])
    np.testing.assert_allclose(again, np.minimum(*single), atol=1e-5)
    assert np.all(reward[1::2] >= reward[::2])


def test_ppo_scores_with_it_and_its_value_model_starts_from_the_first_member(folder, folders, world, tmp_path):
    config = ppo.Config(
        output=str(tmp_path / "out"),
        model=ModelSource(init_from=folders.policy),
        helpfulness=folder,
        data=DataConfig(path=str(world / "prompts.jsonl"), held_out=0.5),
        mesh=MeshConfig(data=1),
        evaluate_every=0,
        ppo=ppo.PPOConfig(rollout_batch_size=4, minibatch_size=4, response_length=4),
    )
    job = ppo.prepare(config)
    roles = job.iteration.programs.roles
    model = roles.model("helpfulness", roles.arrays)
    assert isinstance(model, EnsembleScorer)
    tokens, mask = jnp.arange(1, 7, dtype=jnp.int32)[None], jnp.ones((1, 6), bool)
    members = [RewardModel.load(member).scorer for member in (folders.helpfulness, folders.safety)]
    expected = min(float(score_sequences(member, tokens, mask)[0]) for member in members)
    assert float(score_sequences(model, tokens, mask)[0]) == pytest.approx(expected, abs=1e-5)
    value = ppo.load_value_model(config, ppo.Bases(config.model.compute))
    assert type(value) is SequenceScorer
    np.testing.assert_array_equal(value.kernel[...], members[0].kernel[...])
