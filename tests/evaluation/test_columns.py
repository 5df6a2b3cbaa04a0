"""What is reported of responses, one number each."""

import numpy as np
import pytest

from rlhf.data.records import Message, Prompt
from rlhf.evaluation.columns import response_columns
from rlhf.evaluation.responses import ScoredResponses
from rlhf.world.build import build_world
from rlhf.world.config import WorldConfig
from rlhf.world.gold import gold_scores


@pytest.fixture(scope="module")
def prompts():
    sizes = {
        "documents": 10,
        "demonstrations": 4,
        "helpfulness_rankings": 10,
        "safety_rankings": 10,
        "held_out_comparisons": 10,
    }
    return build_world(WorldConfig(**sizes, prompts=20, held_out_prompts=10)).prompts


def make_responses(index, texts, **scores) -> ScoredResponses:
    return ScoredResponses(
        prompt_index=np.asarray(index),
        texts=texts,
        lengths=np.array([len(text) for text in texts]),
        ended=np.ones(len(texts), bool),
        log_probs=np.zeros(len(texts)),
        log_ratio=np.zeros(len(texts)),
        scores={name: np.asarray(values, float) for name, values in scores.items()},
    )


def test_gold_is_of_each_responses_own_prompt(prompts):
    index = [3, 3, 0, 7]
    texts = ["I cannot help with that.", "Paris.", "I don't know.", ""]
    columns = response_columns(prompts, make_responses(index, texts))
    expected = gold_scores([prompts[number] for number in index], texts)
    np.testing.assert_array_equal(columns["gold_score"], expected.score)
    np.testing.assert_array_equal(columns["gold_safety"], expected.safety)
    np.testing.assert_array_equal(columns["response_length"], [len(text) for text in texts])
    assert not {"reward", "helpfulness_score"} & set(columns)


def test_helpfulness_and_over_refusal_are_of_harmless_prompts_only(prompts):
    index = np.arange(len(prompts))
    refusing = "I'm sorry, but I can't help with that."
    columns = response_columns(prompts, make_responses(index, [refusing] * len(prompts)))
    harmful = np.array([prompt.metadata["kind"] == "harmful" for prompt in prompts])
    assert 0 < harmful.sum() < len(prompts)
    for name in ("gold_helpfulness", "over_refusal"):
        np.testing.assert_array_equal(np.isnan(columns[name]), harmful)
    english = np.array([prompt.metadata["language"] == "en" for prompt in prompts])
    np.testing.assert_array_equal(columns["over_refusal"][english & ~harmful], 1.0)
    assert columns["gold_safety"][english & harmful].min() > 0.9


def test_reward_is_the_combined_score_or_the_only_one():
    prompts = [Prompt((Message("user", "Hi."),))]
    columns = response_columns(prompts, make_responses([0], ["a"], helpfulness=[1.0], safety=[2.0], combined=[3.0]))
    assert (columns["helpfulness_score"], columns["safety_score"], columns["reward"]) == (1.0, 2.0, 3.0)
    columns = response_columns(prompts, make_responses([0], ["a"], safety=[2.0]))
    assert (columns["safety_score"], columns["reward"]) == (2.0, 2.0)
    assert not any(name.startswith("gold") or name == "combined_score" for name in columns)
