"""Labels follow the Bradley–Terry model, rankings that of Plackett and Luce, and the best possible accuracy is what it says."""

from itertools import combinations

import numpy as np
import pytest

from rlhf.data.records import Comparison, Message, Prompt
from rlhf.errors import UserError
from rlhf.world import accuracy_limit, gold_helpfulness, gold_safety
from rlhf.world.comparisons import Annotator, compare, preference_probability, rank
from rlhf.world.config import ComparisonShares
from rlhf.world.draw import generator_for
from rlhf.world.prompts import KINDS, split_prompts

SHARES = {kind: getattr(ComparisonShares(), kind) for kind in KINDS}


def many(beta: float, count: int = 3000, annotation="helpfulness") -> list[Comparison]:
    pool, _ = split_prompts(0)
    generator = generator_for(1, "test")
    prompts = pool.draw(count, {"fact": 0.6, "harmful": 0.2, "borderline": 0.2}, ("en", "zh"), generator)
    return compare(prompts, Annotator(annotation, beta, 0.1, SHARES), generator)


@pytest.mark.parametrize("annotation", ["helpfulness", "safety"])
def test_gold_scores_and_probability_in_the_metadata_are_true(annotation):
    gold = {"helpfulness": gold_helpfulness, "safety": gold_safety}[annotation]
    for comparison in many(5.0, 200, annotation):
        prompt, known = Prompt(comparison.prompt, metadata=comparison.metadata), comparison.metadata
        assert known["chosen_gold"] == gold(prompt, comparison.chosen)
        assert known["rejected_gold"] == gold(prompt, comparison.rejected)
        expected = preference_probability(known["chosen_gold"], known["rejected_gold"], 5.0)
        assert known["preference_probability"] == pytest.approx(expected)
        assert comparison.chosen != comparison.rejected
        assert abs(known["chosen_gold"] - known["rejected_gold"]) >= 0.1


def test_labels_come_out_as_often_as_their_probability_says():
    comparisons = many(2.0)
    stated = np.array([comparison.metadata["preference_probability"] for comparison in comparisons])
    better_chosen, chance = stated > 0.5, np.maximum(stated, 1 - stated)
    for low, high in ((0.5, 0.7), (0.7, 0.8), (0.8, 1.0)):
        inside = (chance >= low) & (chance < high)
        assert inside.sum() > 200
        deviation = np.sqrt((chance[inside] * (1 - chance[inside])).sum()) / inside.sum()
        assert abs(better_chosen[inside].mean() - chance[inside].mean()) < 4 * deviation


def test_the_accuracy_limit_is_what_the_gold_score_reaches():
    comparisons = many(2.0)
    agreeing = np.mean([one.metadata["chosen_gold"] > one.metadata["rejected_gold"] for one in comparisons])
    assert agreeing == pytest.approx(accuracy_limit(comparisons), abs=0.03)


def test_more_reliable_annotators_raise_the_limit():
    assert accuracy_limit(many(1.0, 400)) < accuracy_limit(many(4.0, 400)) < accuracy_limit(many(20.0, 400))


def test_the_limit_needs_the_true_probability():
    with pytest.raises(UserError, match="preference_probability"):
        accuracy_limit([Comparison((Message("user", "Hi"),), "a", "b")])
    with pytest.raises(UserError):
        accuracy_limit([])


def rankings(beta: float, most: int, count: int = 1500):
    pool, _ = split_prompts(0)
    generator = generator_for(1, "test")
    prompts = pool.draw(count, {"fact": 0.6, "harmful": 0.2, "borderline": 0.2}, ("en", "zh"), generator)
    return rank(prompts, Annotator("helpfulness", beta, 0.1, SHARES), most, generator)


@pytest.mark.parametrize("most", [2, 4])
def test_rankings_have_answers_that_differ_in_text_and_worth(most):
    lists = rankings(3.0, most, 200)
    assert max(len(one.answers) for one in lists) == most
    for one in lists:
        prompt, gold = Prompt(one.prompt, metadata=one.metadata), one.metadata["gold"]
        assert 2 <= len(one.answers) == len(set(one.answers)) == len(one.metadata["behaviours"])
        assert gold == [gold_helpfulness(prompt, answer) for answer in one.answers]
        assert np.diff(sorted(gold)).min() >= 0.1


def test_any_two_answers_of_a_ranking_are_a_bradley_terry_pair():
    """Also two that are not neighbours: that is what sets Plackett–Luce apart from sorting by a noisy score of another kind."""
    chance, better_first = [], []
    for one in rankings(2.0, 4):
        for first, second in combinations(one.metadata["gold"], 2):
            chance.append(preference_probability(max(first, second), min(first, second), 2.0))
            better_first.append(first > second)
    chance, better_first = np.array(chance), np.array(better_first)
    for low, high in ((0.5, 0.65), (0.65, 0.8), (0.8, 1.0)):
        inside = (chance >= low) & (chance < high)
        assert inside.sum() > 500
        assert better_first[inside].mean() == pytest.approx(chance[inside].mean(), abs=0.04)


def test_behaviours_that_never_differ_are_refused():
    pool, _ = split_prompts(0)
    annotator = Annotator("helpfulness", 5.0, 0.1, {"fact": {"right": 1.0}})
    with pytest.raises(UserError, match=r"compared\.fact"):
        compare([pool.prompts["fact", "en"][0]], annotator, generator_for(0, "test"))
