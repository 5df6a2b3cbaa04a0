"""The evaluation: policies on the same prompts with the same noise, reward models on their own comparisons and each other's."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlhf.data.sources import DataConfig, load_comparisons
from rlhf.errors import UserError
from rlhf.evaluation.metrics import bootstrap_interval, pair_accuracy
from rlhf.evaluation.reward_model import evaluate_comparisons
from rlhf.generation.sampling import SamplingConfig
from rlhf.parallel.mesh import MeshConfig
from rlhf.rewards.text import RewardModel
from rlhf.stages import evaluate

REPEATS = 2


@pytest.fixture(scope="module")
def config(folders, world, tmp_path_factory) -> evaluate.Config:
    return evaluate.Config(
        output=str(tmp_path_factory.mktemp("evaluate")),
        policies={"start": folders.policy, "other": folders.other_policy, "start again": folders.policy},
        reference=folders.policy,
        helpfulness=folders.helpfulness,
        safety=folders.safety,
        data=DataConfig(path=str(world / "prompts_held_out.jsonl")),
        comparisons={
            kind: DataConfig(path=str(world / f"{kind}_held_out.jsonl")) for kind in ("helpfulness", "safety")
        },
        samples_per_prompt=REPEATS,
        response_length=6,
        batch_size=16,
        mesh=MeshConfig(data=1),
    )


@pytest.fixture(scope="module")
def finished(config):
    """The result, and the columns of each policy in order."""
    columns = []
    original = evaluate.response_columns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            evaluate, "response_columns", lambda *arguments: columns.append(original(*arguments)) or columns[-1]
        )
        return evaluate.run(config), columns


def test_values_are_bootstrapped_means_over_prompts(finished, config):
    result, columns = finished
    for name in ("gold_score", "reward", "gold_helpfulness", "over_refusal", "kl"):
        per_prompt = columns[1][name].reshape(-1, REPEATS).mean(axis=1)
        per_prompt = per_prompt[~np.isnan(per_prompt)]
        assert result["policies"]["other"][name] == bootstrap_interval(per_prompt, seed=config.seed)
    assert 0 < np.isnan(columns[1]["over_refusal"]).mean() < 1


def test_policies_are_told_apart_and_only_they(finished):
    policies = finished[0]["policies"]
    assert policies["start"] == policies["start again"] != policies["other"]
    assert policies["start"]["kl"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert policies["other"]["kl"]["value"] > 0.01


def test_cross_table_has_each_model_on_each_kind_of_comparison(finished, config, folders):
    for model_kind, entry in finished[0]["reward_models"].items():
        model = RewardModel.load(getattr(folders, model_kind))
        for kind, accuracy in entry["cross"].items():
            pairs = load_comparisons(config.comparisons[kind])
            prompts = [pair.prompt for pair in pairs]
            scores = [
                model.score(prompts, [getattr(pair, answer) for pair in pairs]) for answer in ("chosen", "rejected")
            ]
            assert accuracy == pytest.approx(pair_accuracy(*scores), abs=1e-6)
            if kind == model_kind:
                expected = evaluate_comparisons(*scores, pairs, config.seed)
                assert entry["accuracy"] == expected["accuracy"]
                assert entry["accuracy_limit"] == expected["accuracy_limit"]
                assert entry["ece"] == pytest.approx(expected["ece"], abs=1e-5)
        assert set(entry["cross"]) == {"helpfulness", "safety"}


def test_files_have_what_was_returned(finished, config):
    folder = Path(config.output)
    assert json.loads((folder / "evaluation.json").read_text()) == json.loads(json.dumps(finished[0]))
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert {row["policy"] for row in rows} == set(config.policies)
    assert len(rows) == 3 * 12
    harmful = [row for row in rows if row["kind"] == "harmful"]
    assert harmful and all(row["over_refusal"] is None for row in harmful)
    (line,) = (folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["other/gold_score"] == finished[0]["policies"]["other"]["gold_score"]["value"]


def test_without_models_and_reference_there_is_gold_alone(config, tmp_path):
    bare = replace(config, output=str(tmp_path), policies={"start": config.reference}, reference=None)
    result = evaluate.run(replace(bare, helpfulness=None, safety=None, comparisons={}))
    assert result["reward_models"] == {}
    assert {"gold_score", "response_length"} <= set(result["policies"]["start"])
    assert not {"kl", "reward", "helpfulness_score"} & set(result["policies"]["start"])


def test_a_cut_distribution_has_a_kl_if_what_was_left_is_known(config, tmp_path):
    with pytest.raises(UserError, match=r"sampling.top_p is 0.5 without sampling.top_k"):
        evaluate.run(replace(config, output=str(tmp_path), sampling=SamplingConfig(top_p=0.5)))
