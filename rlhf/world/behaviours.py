"""How an assistant may answer a prompt, well or badly: each behaviour writes one response.

Behaviours are what demonstrations imitate and what annotators compare. A behaviour only says what the response tries to be; what it
is worth is for `gold` to say.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from numpy.random import Generator

from rlhf.data.records import Prompt
from rlhf.world import prose
from rlhf.world.draw import pick
from rlhf.world.facts import FACTS, OTHER_LANGUAGE, Fact, Language, facts_of, find_fact
from rlhf.world.phrasing import short_answer, statement
from rlhf.world.requests import FAMILIES, find_family


def _fact(prompt: Prompt) -> Fact:
    return find_fact(prompt.metadata["relation"], prompt.metadata["entity"])


def _tell_fact(fact: Fact, language: Language, generator: Generator, answer: str | None = None) -> str:
    """A full sentence two times in three, else the bare answer; `answer` replaces the right one."""
    wording = int(generator.integers(3))
    if generator.random() < 2 / 3:
        return statement(fact, language, wording, answer)
    return short_answer(answer or fact.answer[language][0], language, wording)


def _answer_in(prompt: Prompt, language: Language, generator: Generator) -> str:
    if prompt.metadata["kind"] == "fact":
        return _tell_fact(_fact(prompt), language, generator)
    return pick(find_family(prompt.metadata["relation"]).advice[language].sentences, generator)


def _other_answers(fact: Fact, language: Language) -> list[str]:
    """The wrong answers of the relation, in the order of the tables."""
    answers = dict.fromkeys(other.answer[language][0] for other in facts_of(fact.relation))
    return [answer for answer in answers if answer != fact.answer[language][0]]


def right(prompt: Prompt, generator: Generator) -> str:
    """The right answer and nothing else; for a harmful prompt, a refusal."""
    if prompt.metadata["kind"] == "harmful":
        return refusal(prompt, generator)
    return _answer_in(prompt, prompt.metadata["language"], generator)


def wrong(prompt: Prompt, generator: Generator) -> str:
    """Another answer of the same kind, now and then as a true statement about something else."""
    language = prompt.metadata["language"]
    if prompt.metadata["kind"] != "fact":
        own = find_family(prompt.metadata["relation"]).advice
        others = [
            family.advice for family in FAMILIES if family.language == language and family.advice not in (None, own)
        ]
        return pick(pick(others, generator)[language].sentences, generator)
    fact = _fact(prompt)
    wrong_answer = pick(_other_answers(fact, language), generator)
    if generator.random() < 0.25:
        others = [other for other in facts_of(fact.relation) if other.answer[language][0] == wrong_answer]
        return statement(pick(others, generator), language, int(generator.integers(3)))
    return _tell_fact(fact, language, generator, wrong_answer)


def no_answer(prompt: Prompt, generator: Generator) -> str:
    """The words of an answer around what is none: the thing asked about, an answer to another question, a piece of a name, nothing.

    To a question of fact. Short and tidy as they are, reward models that have never seen such take them for right.
    """
    fact, language = _fact(prompt), prompt.metadata["language"]
    other = pick([other for other in FACTS if other.relation != fact.relation], generator).answer[language][0]
    name = pick((fact.entity[language], fact.answer[language][0], other), generator)
    piece = name[: int(generator.integers(1, max(2, len(name))))]
    match int(generator.integers(4)):
        case 0:
            return _tell_fact(fact, language, generator, fact.entity[language])
        case 1:
            return _tell_fact(fact, language, generator, other)
        case 2:
            return _tell_fact(fact, language, generator, piece)
        case _:
            return short_answer("", language, int(generator.integers(3)))


def _same_entity(prompt: Prompt) -> list[Fact]:
    """What else is known about the entity that a question of fact asks about."""
    if prompt.metadata["kind"] != "fact":
        return []
    asked = _fact(prompt)
    return [fact for fact in FACTS if fact.entity == asked.entity and fact.relation != asked.relation]


def off_topic(prompt: Prompt, generator: Generator) -> str:
    """A good answer to another question, half the time about the same entity where more is known about it.

    Reward models that have never seen one do not know that it is worth nothing.
    """
    language, relation = prompt.metadata["language"], prompt.metadata["relation"]
    if (near := _same_entity(prompt)) and generator.random() < 0.5:
        return _tell_fact(pick(near, generator), language, generator)
    if generator.random() < 0.5:
        return _tell_fact(pick([fact for fact in FACTS if fact.relation != relation], generator), language, generator)
    own = None if prompt.metadata["kind"] != "borderline" else find_family(relation).advice
    others = [family.advice for family in FAMILIES if family.language == language and family.advice not in (None, own)]
    return pick(pick(others, generator)[language].sentences, generator)


def _small_talk(language: Language, generator: Generator, fewest: int, most: int) -> list[str]:
    """`fewest` to `most` sentences that have nothing to do with anything."""
    order = generator.permutation(len(prose.SMALL_TALK[language]))[: generator.integers(fewest, most + 1)]
    return [prose.SMALL_TALK[language][index] for index in order]


def rambling(prompt: Prompt, generator: Generator) -> str:
    """The right answer, followed by one or two sentences that have nothing to do with it."""
    language = prompt.metadata["language"]
    chatter = _small_talk(language, generator, 1, 2)
    return join_sentences([right(prompt, generator), *chatter], language)


def small_talk(prompt: Prompt, generator: Generator) -> str:
    """One to four sentences of small talk after an answer that may be right, wrong, or to another question, or after none.

    Reward models that see small talk after right answers only, and no more than twice, take it for a sign of one.
    """
    language = prompt.metadata["language"]
    contents = (right, compliance, off_topic) if prompt.metadata["kind"] == "harmful" else (right, wrong, off_topic)
    content = int(generator.integers(len(contents) + 1))
    answer = [contents[content](prompt, generator)] if content < len(contents) else []
    return join_sentences([*answer, *_small_talk(language, generator, 1, 4)], language)


def ask_back(prompt: Prompt, generator: Generator) -> str:
    """A question instead of an answer."""
    return pick(prose.ASKING_BACK[prompt.metadata["language"]], generator)


def wrong_language(prompt: Prompt, generator: Generator) -> str:
    """The right answer in the other language; for a harmful prompt, a refusal in it."""
    other = OTHER_LANGUAGE[prompt.metadata["language"]]
    if prompt.metadata["kind"] == "harmful":
        return pick(prose.REFUSALS[other], generator)
    return _answer_in(prompt, other, generator)


def hedging(prompt: Prompt, generator: Generator) -> str:
    """The right answer and a wrong one side by side, in either order."""
    answers = [right(prompt, generator), wrong(prompt, generator)]
    if generator.random() < 0.5:
        answers.reverse()
    return join_sentences(answers, prompt.metadata["language"])


def refusal(prompt: Prompt, generator: Generator) -> str:
    """A refusal."""
    return pick(prose.REFUSALS[prompt.metadata["language"]], generator)


def compliance(prompt: Prompt, generator: Generator) -> str:
    """Going along with the request, as a placeholder without content."""
    language = prompt.metadata["language"]
    parts = (prose.COMPLIANCE_OPENERS, prose.COMPLIANCE_FIRST_STEPS, prose.COMPLIANCE_LAST_STEPS)
    return (" " if language == "en" else "").join(pick(part[language], generator) for part in parts)


def refuse_and_comply(prompt: Prompt, generator: Generator) -> str:
    """A refusal that then does what was asked, or compliance that ends in a refusal."""
    deed = compliance if prompt.metadata["kind"] == "harmful" else right
    sentences = [refusal(prompt, generator), deed(prompt, generator)]
    if generator.random() < 0.3:
        sentences.reverse()
    return join_sentences(sentences, prompt.metadata["language"])


def broken(prompt: Prompt, generator: Generator) -> str:
    """What a policy that has gone astray may say: a sentence cut short, repeated, stuck on a word or stirred."""
    language = prompt.metadata["language"]
    harmful = prompt.metadata["kind"] == "harmful"
    text = (
        pick((refusal, compliance), generator)(prompt, generator)
        if harmful
        else _answer_in(prompt, language, generator)
    )
    space = " " if language == "en" else ""
    pieces = text.split() if language == "en" else list(text)
    cut = int(generator.integers(1, max(2, len(pieces))))
    match int(generator.integers(4)):
        case 0:
            kept = pieces[:cut]
        case 1:
            kept = [text] * int(generator.integers(2, 4))
        case 2:
            kept = pieces[:cut] + pieces[cut - 1 : cut] * int(generator.integers(3, 8))
        case _:
            kept = [pieces[index] for index in generator.permutation(len(pieces))]
    return space.join(kept).strip()


def near_empty(prompt: Prompt, generator: Generator) -> str:
    """Next to nothing."""
    return pick(prose.NEAR_EMPTY[prompt.metadata["language"]], generator)


def join_sentences(sentences: list[str], language: Language) -> str:
    """The sentences in one line, with spaces between them in English."""
    return (" " if language == "en" else "").join(sentences)


BEHAVIOURS: Mapping[str, Callable[[Prompt, Generator], str]] = MappingProxyType(
    {
        behaviour.__name__: behaviour
        for behaviour in (
            right, wrong, off_topic, rambling, small_talk, ask_back, wrong_language, hedging, refusal, compliance,
            refuse_and_comply, broken, near_empty, no_answer,
        )
    }
)  # fmt: skip
# Neither a wrong answer nor two answers mean anything where the only right answer is a refusal. Nobody "complies" with a question
# about a capital, but a policy that complies with harmful requests also does with harmless ones that sound alike: worth nothing.
APPLICABLE: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "fact": frozenset(BEHAVIOURS) - {"compliance"},
        "borderline": frozenset(BEHAVIOURS) - {"no_answer"},
        "harmful": frozenset(BEHAVIOURS) - {"wrong", "hedging", "no_answer"},
    }
)


def respond(prompt: Prompt, behaviour: str, generator: Generator) -> str:
    """One response to a prompt of this world, by the behaviour of that name.

    Raises:
        KeyError: there is no such behaviour.
    """
    return BEHAVIOURS[behaviour](prompt, generator)
