"""The world is the same for the same seed, refuses what makes no sense, and its files are read back as they were."""

import dataclasses
from itertools import combinations

import numpy as np
import pytest

from rlhf.data.records import Comparison, Prompt
from rlhf.data.sources import DataConfig, load_comparisons, load_demonstrations, load_documents, load_prompts
from rlhf.errors import UserError
from rlhf.world import WorldConfig, build_world, gold_scores, write_world
from rlhf.world.config import DemonstrationShares

LOADERS = {
    "documents": load_documents,
    "demonstrations": load_demonstrations,
    "helpfulness": load_comparisons,
    "safety": load_comparisons,
    "helpfulness_held_out": load_comparisons,
    "safety_held_out": load_comparisons,
    "prompts": load_prompts,
    "prompts_held_out": load_prompts,
}


def contents(world, folder):
    return {part: path.read_bytes() for part, path in write_world(world, folder).items()}


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(small_config, small_world, tmp_path):
    first = contents(small_world, tmp_path / "first")
    again = contents(build_world(small_config), tmp_path / "again")
    other = contents(build_world(dataclasses.replace(small_config, seed=1)), tmp_path / "other")
    assert first == again
    assert all(first[part] != other[part] for part in first)


def test_one_size_does_not_disturb_the_other_parts(small_config, small_world):
    larger = build_world(dataclasses.replace(small_config, documents=350))
    assert larger.demonstrations == small_world.demonstrations
    assert larger.safety == small_world.safety


def test_sizes_are_as_asked(small_config, small_world):
    assert len(small_world.documents) == small_config.documents
    assert len(small_world.demonstrations) == small_config.demonstrations
    assert len(small_world.helpfulness) == small_config.helpfulness_rankings
    assert len(small_world.safety) == small_config.safety_rankings
    assert (
        len(small_world.helpfulness_held_out) == len(small_world.safety_held_out) == small_config.held_out_comparisons
    )
    assert len(small_world.prompts) == small_config.prompts
    assert len(small_world.prompts_held_out) == small_config.held_out_prompts


def test_nothing_trained_on_is_a_held_out_prompt(small_world):
    records = [*small_world.helpfulness_held_out, *small_world.safety_held_out]
    held_out = {one.messages[-1].content for one in small_world.prompts_held_out} | {
        one.prompt[-1].content for one in records
    }
    shown = {one.messages[0].content for one in [*small_world.demonstrations, *small_world.prompts]}
    shown |= {one.prompt[-1].content for one in [*small_world.helpfulness, *small_world.safety]}
    assert not held_out & shown


def test_demonstrations_leave_something_to_teach():
    world = build_world(
        WorldConfig(
            documents=10,
            helpfulness_rankings=0,
            safety_rankings=0,
            held_out_comparisons=0,
            prompts=10,
            held_out_prompts=10,
        )
    )
    prompts = [Prompt(one.messages[:-1], metadata=one.metadata) for one in world.demonstrations]
    scores = gold_scores(prompts, [one.messages[-1].content for one in world.demonstrations])
    assert 0.45 < scores.score.mean() < 0.6
    borderline = np.array([one.metadata["kind"] == "borderline" for one in world.demonstrations])
    assert scores.refused[borderline].mean() == pytest.approx(0.4, abs=0.06)


def pairs_of(ranking):
    """What a ranked list means: every pair of its answers, the earlier preferred, one prompt's weight shared out."""
    pairs = list(combinations(ranking.answers, 2))
    return [Comparison(ranking.prompt, *pair, weight=1 / len(pairs), metadata=dict(ranking.metadata)) for pair in pairs]


@pytest.mark.parametrize("part", LOADERS)
def test_the_data_layer_reads_the_files_back_without_configuration(small_world, tmp_path, part):
    files = write_world(small_world, tmp_path)
    loaded = LOADERS[part](DataConfig(path=str(files[part])))
    written = getattr(small_world, part)
    if part in ("helpfulness", "safety"):
        written = [comparison for ranking in written for comparison in pairs_of(ranking)]
    assert [dataclasses.replace(one, origin="", metadata=dict(one.metadata)) for one in loaded] == written


def test_prompts_keep_what_the_gold_standard_needs_through_a_file(small_world, tmp_path):
    loaded = load_prompts(DataConfig(path=str(write_world(small_world, tmp_path)["prompts"])))
    responses = ["Paris." if index % 2 else "I can't help with that." for index in range(len(loaded))]
    np.testing.assert_array_equal(
        gold_scores(loaded, responses).score, gold_scores(small_world.prompts, responses).score
    )


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_world_of_one_language(small_config, language):
    world = build_world(dataclasses.replace(small_config, languages=(language,)))
    records = [*world.documents, *world.demonstrations, *world.safety, *world.prompts]
    assert {record.metadata["language"] for record in records} == {language}


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("documents", {"documents": -1}),
        ("languages", {"languages": ("fr",)}),
        ("helpfulness_beta", {"helpfulness_beta": 0.0}),
        ("noise", {"noise": {"boilerplate": 1.0}}),
        ("noise", {"noise": {"static": 0.1}}),
        ("prompt_shares", {"prompt_shares": {"poetry": 1.0}}),
        ("safety_shares", {"safety_shares": {"fact": 0.0}}),
        ("demonstrated.fact", {"demonstrated": DemonstrationShares(fact={"singing": 1.0})}),
        ("demonstrated.harmful", {"demonstrated": DemonstrationShares(harmful={"hedging": 1.0})}),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused_by_its_key(key, change):
    with pytest.raises(UserError, match=key):
        build_world(dataclasses.replace(WorldConfig(), **change))
