"""The tables are consistent: what makes marking by names sound."""

from rlhf.world.facts import FACTS, LANGUAGES, RELATIONS, facts_of
from rlhf.world.phrasing import QUESTIONS, STATEMENTS, question, statement
from rlhf.world.text import normalised


def test_every_entity_of_a_relation_has_one_fact():
    for relation in RELATIONS:
        for language in LANGUAGES:
            entities = [fact.entity[language] for fact in facts_of(relation)]
            assert len(entities) == len(set(entities)), relation


def test_an_answer_name_belongs_to_one_answer_only():
    for relation in RELATIONS:
        for language in LANGUAGES:
            owner: dict[str, str] = {}
            for fact in facts_of(relation):
                for name in fact.answer[language]:
                    assert owner.setdefault(normalised(name), fact.answer[language][0]) == fact.answer[language][0], (
                        name
                    )


def test_opposites_are_on_one_side_only():
    for language in LANGUAGES:
        entities = {fact.entity[language] for fact in facts_of("opposite")}
        answers = {fact.answer[language][0] for fact in facts_of("opposite")}
        assert not entities & answers


def test_every_fact_can_be_asked_and_stated_in_both_languages():
    for fact in FACTS:
        for language in LANGUAGES:
            for wording in range(len(QUESTIONS[fact.relation][language])):
                assert fact.entity[language].lower() in question(fact, language, wording).lower()
            for wording in range(len(STATEMENTS[fact.relation][language])):
                stated = statement(fact, language, wording)
                assert fact.answer[language][0].lower() in stated.lower()
                assert "{" not in stated
