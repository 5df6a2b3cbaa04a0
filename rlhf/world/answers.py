"""Which answers a prompt can have: the right one, the others of its kind, and how each is recognised in a text."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from rlhf.data.records import Prompt
from rlhf.errors import UserError
from rlhf.world.facts import LANGUAGES, Language, facts_of, find_fact
from rlhf.world.phrasing import STATEMENTS
from rlhf.world.requests import FAMILIES, find_family
from rlhf.world.text import normalised, words_of

# Letter case is part of a chemical symbol: CO is not Co.
_CASE_MATTERS = ("symbol",)
_METADATA_KEYS = ("kind", "language", "relation", "entity")


@dataclass(frozen=True)
class AnswerKey:
    """How to mark the answers to one harmless prompt.

    Attributes:
        right: for each language, the pattern that finds the right answer.
        candidates: for each language, the pattern that finds any answer of this kind, the right one included.
        other_entities: finds what else the relation could be asked about, named in either language.
        carriers: the words (English) and characters (Chinese) that a statement of the answer is made of.
    """

    right: Mapping[Language, re.Pattern[str]]
    candidates: Mapping[Language, re.Pattern[str]]
    other_entities: re.Pattern[str]
    carriers: frozenset[str]


def name_pattern(names: list[str], *, case_matters: bool = False) -> re.Pattern[str]:
    """A pattern that finds any of the names as whole words in normalised text, the longest first.

    Chinese has no word boundaries, so there a name is found anywhere; a number is not found inside a larger one or after a minus.
    """
    alternatives = []
    for name in sorted({normalised(name) for name in names}, key=len, reverse=True):
        before = r"(?<![A-Za-z0-9])" if name[0].isascii() and name[0].isalnum() else ""
        if name[0].isdigit():
            before += r"(?<!minus )(?<!零下)(?<![-.])"
        after = r"(?![A-Za-z0-9])" if name[-1].isascii() and name[-1].isalnum() else ""
        alternatives.append(f"{before}{re.escape(name)}{after}")
    return re.compile("|".join(alternatives) or r"(?!)", 0 if case_matters else re.IGNORECASE)


def _carriers(texts: list[str]) -> frozenset[str]:
    small_words = "it is the answer called a an yes that's of in this that 答案是它在的就會有叫做"
    return frozenset(word for text in [*texts, small_words] for word in words_of(normalised(text)))


@cache
def _fact_key(relation: str, entity: str) -> AnswerKey:
    fact = find_fact(relation, entity)
    facts = facts_of(relation)
    case_matters = relation in _CASE_MATTERS
    # One-character names (鐵, 狗) turn up inside other words, so they prove nothing.
    others = [name for other in facts if other != fact for name in other.entity.values() if len(name) > 1]
    return AnswerKey(
        right={code: name_pattern(list(fact.answer[code]), case_matters=case_matters) for code in LANGUAGES},
        candidates={
            code: name_pattern([name for one in facts for name in one.answer[code]], case_matters=case_matters)
            for code in LANGUAGES
        },
        other_entities=name_pattern(others),
        carriers=_carriers(
            [
                text
                for code in LANGUAGES
                for text in (*STATEMENTS[relation][code], fact.entity[code], *fact.answer[code])
            ]
        ),
    )


@cache
def _advice_key(name: str, entity: str) -> AnswerKey:
    family = find_family(name)
    advice = family.advice
    all_advice = [other.advice for other in FAMILIES if other.advice is not None]
    return AnswerKey(
        right={code: name_pattern(list(advice[code].keys)) for code in LANGUAGES},
        candidates={code: name_pattern([key for one in all_advice for key in one[code].keys]) for code in LANGUAGES},
        other_entities=name_pattern([]),
        carriers=_carriers([*(text for code in LANGUAGES for text in advice[code].sentences), entity, *family.verbs]),
    )


def check_metadata(prompt: Prompt) -> None:
    """Refuse a prompt that is not of this world.

    Raises:
        UserError: its metadata lacks one of kind, language, relation and entity.
    """
    missing = [key for key in _METADATA_KEYS if key not in prompt.metadata]
    if missing:
        where = f" at {prompt.origin}" if prompt.origin else ""
        raise UserError(
            f"the prompt{where} cannot be scored against the gold standard: its metadata has no {', '.join(missing)}",
            fix="gold scores exist only for prompts of the embedded world (write_world keeps these columns); for other data "
            "use a reward model or a rule",
        )


def answer_key(prompt: Prompt) -> AnswerKey:
    """How to mark the answers to a harmless prompt of this world.

    Raises:
        UserError: the prompt names a relation or an entity that this world does not have.
    """
    relation, entity = prompt.metadata["relation"], prompt.metadata["entity"]
    try:
        return _fact_key(relation, entity) if prompt.metadata["kind"] == "fact" else _advice_key(relation, entity)
    except KeyError as error:
        raise UserError(
            f"the prompt cannot be scored against the gold standard: {error.args[0]}",
            fix="make the world's files again with this version of the package",
        ) from error
