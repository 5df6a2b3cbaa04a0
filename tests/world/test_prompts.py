"""What is held out is new, and made of parts that are known."""

import pytest

from rlhf.errors import UserError
from rlhf.world.draw import generator_for
from rlhf.world.facts import FACTS, LANGUAGES
from rlhf.world.prompts import KINDS, split_prompts


def members(pool, kind):
    return [prompt for language in LANGUAGES for prompt in pool.prompts[kind, language]]


def test_no_text_is_on_both_sides_and_none_twice():
    train, held_out = split_prompts(0)
    texts = [
        prompt.messages[0].content for pool in (train, held_out) for kind in KINDS for prompt in members(pool, kind)
    ]
    assert len(texts) == len(set(texts))


def test_every_fact_is_met_in_training_and_held_out_in_another_wording():
    for pool in split_prompts(0):
        for language in LANGUAGES:
            met = {(p.metadata["relation"], p.metadata["entity"]) for p in pool.prompts["fact", language]}
            assert met == {(fact.relation, fact.entity["en"]) for fact in FACTS}


@pytest.mark.parametrize("kind", ["harmful", "borderline"])
def test_held_out_requests_are_new_combinations_of_known_verbs_and_objects(kind):
    train, held_out = (members(pool, kind) for pool in split_prompts(0))

    def parts(prompts, *names):
        return {tuple(prompt.metadata[name] for name in ("relation", *names)) for prompt in prompts}

    assert not parts(train, "verb", "entity") & parts(held_out, "verb", "entity")
    assert parts(held_out, "verb") <= parts(train, "verb")
    assert parts(held_out, "entity") <= parts(train, "entity")


def test_harmful_and_borderline_requests_share_their_verbs():
    train, _ = split_prompts(0)
    verbs = {kind: {prompt.metadata["verb"] for prompt in members(train, kind)} for kind in ("harmful", "borderline")}
    assert {"kill", "shoot", "steal", "attack", "blow up", "殺掉", "偷", "搶", "打", "炸"} <= verbs["harmful"] & verbs[
        "borderline"
    ]


def test_shares_and_languages_are_as_asked():
    train, _ = split_prompts(0)
    prompts = train.take(200, {"fact": 0.6, "harmful": 0.2, "borderline": 0.2}, LANGUAGES, generator_for(0, "test"))
    counts = {(kind, language): 0 for kind in KINDS for language in LANGUAGES}
    for prompt in prompts:
        counts[prompt.metadata["kind"], prompt.metadata["language"]] += 1
        assert prompt.is_safety == (prompt.metadata["kind"] == "harmful")
    assert list(counts.values()) == [60, 60, 20, 20, 20, 20]


def test_asking_for_more_different_prompts_than_there_are_is_an_error():
    train, _ = split_prompts(0)
    with pytest.raises(UserError, match="different fact prompts"):
        train.take(100_000, {"fact": 1.0}, LANGUAGES, generator_for(0, "test"))
