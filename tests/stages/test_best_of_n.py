"""Best-of-n, held against choosing the best of every subset of its own samples."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlhf.data.sources import DataConfig, load_demonstrations
from rlhf.evaluation.best_of_n import best_of_n_kl_estimate
from rlhf.evaluation.responses import ScoredSampler
from rlhf.generation.sampling import SamplingConfig
from rlhf.models.source import ModelSource
from rlhf.parallel.mesh import MeshConfig
from rlhf.stages import best_of_n

SAMPLES = 5


@pytest.fixture(scope="module")
def config(folders, world, tmp_path_factory) -> best_of_n.Config:
    return best_of_n.Config(
        output=str(tmp_path_factory.mktemp("best_of_n")),
        model=ModelSource(init_from=folders.policy),
        helpfulness=folders.helpfulness,
        safety=folders.safety,
        data=DataConfig(path=str(world / "prompts_held_out.jsonl")),
        n=[1, 3, SAMPLES],
        write_chosen=True,
        prefer_ended=False,
        sampling=SamplingConfig(top_k=2),
        response_length=6,
        batch_size=16,
        mesh=MeshConfig(data=1),
    )


@pytest.fixture(scope="module")
def finished(config):
    """The stage's summary, and what it knew about each of its samples."""
    caught = {}
    original = best_of_n.response_columns

    def catching(prompts, responses):
        caught["columns"] = original(prompts, responses)
        caught["prompts"], caught["responses"] = prompts, responses
        return caught["columns"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best_of_n, "response_columns", catching)
        summary = best_of_n.run(config)
    return summary, caught


def by_subsets(proxy, values, n):
    """Mean over all subsets of n samples of what the one with the highest proxy score is worth."""
    winners = [max(chosen, key=lambda sample: proxy[sample]) for chosen in itertools.combinations(range(SAMPLES), n)]
    return np.mean([values[winner] for winner in winners])


def test_estimates_are_means_over_all_subsets(finished):
    summary, caught = finished
    assert summary["samples_per_prompt"] == SAMPLES and summary["prompts"] == len(caught["prompts"])
    assert list(summary["estimates"]) == ["best_of_1", "best_of_3", "best_of_5"]
    proxy = caught["columns"]["reward"].reshape(-1, SAMPLES)
    for name in ("reward", "helpfulness_score", "gold_score", "gold_helpfulness", "response_length"):
        values = caught["columns"][name].reshape(-1, SAMPLES)
        rows = [row for row in range(len(values)) if not np.isnan(values[row]).any()]
        for n in (1, 3, SAMPLES):
            expected = np.mean([by_subsets(proxy[row], values[row], n) for row in rows])
            estimate = summary["estimates"][f"best_of_{n}"][name]
            assert estimate["value"] == pytest.approx(expected, abs=1e-6), (name, n)
            assert estimate["low"] <= estimate["value"] <= estimate["high"]
    rewards = [summary["estimates"][f"best_of_{n}"]["reward"]["value"] for n in (1, 3, SAMPLES)]
    assert rewards[0] < rewards[1] < rewards[2]


def test_an_answer_that_was_cut_is_chosen_only_where_all_were(config, tmp_path, monkeypatch):
    caught, original = [], ScoredSampler.__call__

    def of_which_some_ended(*arguments, **options):
        responses = original(*arguments, **options)
        ended = np.random.default_rng(0).random(len(responses.texts)) < 0.3
        caught.append(replace(responses, ended=ended))
        return caught[-1]

    monkeypatch.setattr(ScoredSampler, "__call__", of_which_some_ended)
    best_of_n.run(replace(config, output=str(tmp_path), prefer_ended=True))
    chosen = [json.loads(line) for line in (tmp_path / "chosen.jsonl").read_text().splitlines()]
    rewards, ended = (
        values.reshape(-1, SAMPLES) for values in (caught[0].scores["combined"].astype(float), caught[0].ended)
    )
    some = ended.any(axis=1)
    assert some.any() and not some.all()
    assert [row["ended"] for row in chosen] == some.tolist()
    eligible = np.where(ended | ~some[:, None], rewards, -np.inf)
    assert [row["reward"] for row in chosen] == pytest.approx(eligible.max(axis=1).tolist(), rel=1e-6)
    assert not np.allclose(eligible.max(axis=1), rewards.max(axis=1))


def test_kl_is_the_bound_for_n(finished, config):
    curve = json.loads((Path(config.output) / "best_of_n.json").read_text())
    assert [entry["n"] for entry in curve.values()] == [1, 2, 3, 4, 5]  # asked for, and powers of two
    for entry in curve.values():
        assert entry["kl"]["value"] == pytest.approx(math.log(entry["n"]) - (entry["n"] - 1) / entry["n"], abs=1e-6)


def test_the_estimated_kl_is_the_mean_over_the_winners_of_all_subsets(finished, config):
    curve = json.loads((Path(config.output) / "best_of_n.json").read_text())
    proxy = finished[1]["columns"]["reward"].reshape(-1, SAMPLES)
    log_probs = finished[1]["responses"].log_probs.reshape(-1, SAMPLES)
    for n in (2, 3):
        values = best_of_n_kl_estimate(log_probs, n)
        expected = np.mean([by_subsets(proxy[row], values[row], n) for row in range(len(proxy))])
        entry = curve[f"best_of_{n}"]
        assert entry["kl_estimate"]["value"] == pytest.approx(expected, rel=1e-4)
        assert (
            0 < entry["kl_estimate"]["value"] < (1 - 1e-5) * entry["kl"]["value"]
        )  # of two tokens each: samples repeat


def test_errors_say_what_more_prompts_and_what_more_samples_would_mend(finished):
    columns = finished[1]["columns"]
    rewards = columns["reward"].astype(np.float64).reshape(-1, SAMPLES)
    entry = finished[0]["estimates"]["best_of_1"]["reward"]
    assert entry["standard_error"] == pytest.approx(np.std(rewards.mean(axis=1), ddof=1) / np.sqrt(len(rewards)))
    within = rewards.var(axis=1, ddof=1) / SAMPLES
    assert entry["sampling_error"] == pytest.approx(np.sqrt(within.sum()) / len(rewards))
    assert finished[0]["estimates"][f"best_of_{SAMPLES}"]["reward"]["sampling_error"] is None


def test_chosen_answers_can_be_learned_from(finished, config):
    demonstrations = load_demonstrations(DataConfig(path=str(Path(config.output) / "chosen.jsonl")))
    proxy = finished[1]["columns"]["reward"].reshape(-1, SAMPLES)
    texts = np.array(finished[1]["responses"].texts).reshape(-1, SAMPLES)
    assert len(demonstrations) == len(proxy)
    for number, (demonstration, prompt) in enumerate(zip(demonstrations, finished[1]["prompts"], strict=True)):
        assert demonstration.messages[:-1] == prompt.messages
        assert demonstration.messages[-1].content == texts[number, proxy[number].argmax()]
        assert demonstration.metadata["reward"] == pytest.approx(proxy[number].max(), rel=1e-6)


def test_samples_show_the_first_and_the_best(finished, config):
    lines = (Path(config.output) / "samples.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    proxy = finished[1]["columns"]["reward"].reshape(-1, SAMPLES)
    texts = np.array(finished[1]["responses"].texts).reshape(-1, SAMPLES)
    for number, (first, best) in enumerate(zip(rows[::2], rows[1::2], strict=True)):
        assert (first["n"], best["n"]) == (1, SAMPLES) and first["prompt"] == best["prompt"]
        assert first["response"] == texts[number, 0]
        assert best["response"] == texts[number, proxy[number].argmax()]
        assert best["reward"] == pytest.approx(proxy[number].max(), rel=1e-6)
