"""Pretraining documents: short texts that state the facts in varied words, and the noise that cleaning must remove.

Only training wordings and combinations are written, so a held-out prompt has never been seen anywhere.
"""

from collections.abc import Iterator, Mapping, Sequence

from numpy.random import Generator

from rlhf.data.records import Document
from rlhf.world.behaviours import join_sentences
from rlhf.world.draw import pick, pick_weighted
from rlhf.world.facts import FACTS, Fact, Language, facts_of, find_fact
from rlhf.world.noise import add_noise
from rlhf.world.phrasing import short_answer, statement
from rlhf.world.prompts import PromptPool
from rlhf.world.prose import (
    ASKING_BACK,
    COMPLIANCE_FIRST_STEPS,
    COMPLIANCE_LAST_STEPS,
    COMPLIANCE_OPENERS,
    REFUSALS,
    SMALL_TALK,
)
from rlhf.world.requests import find_family

# What clean documents are about, with their weights.
_TOPICS = {
    "facts of one thing": 4.0,
    "facts of one kind": 2.0,
    "questions": 2.0,
    "advice": 1.2,
    "right and wrong": 0.6,
    "talk": 0.6,
}
_JUDGEMENTS: Mapping[Language, tuple[str, ...]] = {
    "en": (
        "It is wrong to {verb} {object}.",
        "Nobody should {verb} {object}.",
        "To {verb} {object} is against the law.",
        "Good people do not {verb} {object}.",
    ),
    "zh": (
        "{verb}{object}是不對的。",
        "誰都不該{verb}{object}。",
        "{verb}{object}是違法的。",
        "好人不會{verb}{object}。",
    ),
}
_INTRODUCTIONS: Mapping[Language, tuple[str, ...]] = {
    "en": ("To {verb} {object}, take your time.", "You want to {verb} {object}?", "Anyone can {verb} {object}."),
    "zh": ("要{verb}{object}，慢慢來。", "想{verb}{object}嗎？", "{verb}{object}並不難。"),
}
_QUESTION_MARKS: Mapping[Language, tuple[tuple[str, str], ...]] = {
    "en": (("Q: ", "A: "), ("Question: ", "Answer: "), ("", "")),
    "zh": (("問：", "答："), ("問題：", "回答："), ("", "")),
}


def write_documents(
    count: int,
    noise_shares: Mapping[str, float],
    prompts: PromptPool,
    languages: Sequence[Language],
    generator: Generator,
) -> list[Document]:
    """Documents in random order, languages in turn; `noise_shares` is the share of the documents with each kind of noise.

    The metadata has the `language` and, for a document that cleaning should mend or drop, the kind of `noise` (else None).
    """
    noisy = sum(round(count * share) for share in noise_shares.values())
    clean: dict[str, Document] = {}
    # The facts come in turn, so that each is told equally often.
    facts = _in_turn(FACTS, generator)
    while len(clean) < count - noisy:
        language = languages[len(clean) % len(languages)]
        text = _write_text(pick_weighted(_TOPICS, generator), language, facts, prompts, generator)
        clean.setdefault(text, Document(text, metadata={"language": language, "noise": None}))
    documents = add_noise(
        list(clean.values()), {kind: round(count * share) for kind, share in noise_shares.items()}, generator
    )
    return [documents[index] for index in generator.permutation(len(documents))]


def _in_turn(facts: Sequence[Fact], generator: Generator) -> Iterator[Fact]:
    """The facts without end, each met once before any is met again, in a new order every time."""
    while True:
        for index in generator.permutation(len(facts)):
            yield facts[index]


def _write_text(
    topic: str, language: Language, facts: Iterator[Fact], prompts: PromptPool, generator: Generator
) -> str:
    match topic:
        case "facts of one thing":
            return _about_one_thing(next(facts), language, generator)
        case "facts of one kind":
            return _about_one_kind(next(facts), language, generator)
        case "questions":
            return _questions(language, prompts, generator)
        case "advice":
            return _advice(language, prompts, generator)
        case "right and wrong":
            return _right_and_wrong(language, prompts, generator)
        case _:
            return _talk(language, generator)


def _tell(fact: Fact, language: Language, generator: Generator) -> str:
    return statement(fact, language, int(generator.integers(3)))


def _about_one_thing(fact: Fact, language: Language, generator: Generator) -> str:
    """What is known about an entity, told twice in other words where little is known, with a sentence of small talk."""
    known = [other for other in FACTS if other.entity["en"] == fact.entity["en"]]
    sentences = [
        statement(fact, language, int(wording)) for wording in generator.permutation(3)[: 3 if len(known) == 1 else 1]
    ]
    sentences += [_tell(other, language, generator) for other in known if other != fact]
    sentences = [sentences[index] for index in generator.permutation(len(sentences))]
    return join_sentences([*sentences, pick(SMALL_TALK[language], generator)], language)


def _about_one_kind(fact: Fact, language: Language, generator: Generator) -> str:
    """A few facts of the same relation, one after another."""
    others = facts_of(fact.relation)
    chosen = [fact, *(others[index] for index in generator.permutation(len(others))[:3] if others[index] != fact)]
    return join_sentences([_tell(other, language, generator) for other in chosen], language)


def _questions(language: Language, prompts: PromptPool, generator: Generator) -> str:
    """Questions with their answers, one a line."""
    question_mark, answer_mark = pick(_QUESTION_MARKS[language], generator)
    lines = []
    for _ in range(2):
        prompt = pick(prompts.prompts["fact", language], generator)
        fact = find_fact(prompt.metadata["relation"], prompt.metadata["entity"])
        short = generator.random() < 0.4
        answer = short_answer(fact.answer[language][0], language, 0) if short else _tell(fact, language, generator)
        lines += [question_mark + prompt.messages[0].content, answer_mark + answer]
    return "\n".join(lines)


def _advice(language: Language, prompts: PromptPool, generator: Generator) -> str:
    """How to do a harmless thing that sounds harmful."""
    prompt = pick(prompts.prompts["borderline", language], generator)
    introduction = pick(_INTRODUCTIONS[language], generator)
    sentence = introduction.format(verb=prompt.metadata["verb"], object=prompt.metadata["entity"])
    advice = pick(find_family(prompt.metadata["relation"]).advice[language].sentences, generator)
    return join_sentences([sentence, advice, pick(SMALL_TALK[language], generator)], language)


def _right_and_wrong(language: Language, prompts: PromptPool, generator: Generator) -> str:
    """That a harmful thing is wrong, with the words in which people refuse or go along."""
    prompt = pick(prompts.prompts["harmful", language], generator)
    judgement = pick(_JUDGEMENTS[language], generator).format(
        verb=prompt.metadata["verb"], object=prompt.metadata["entity"]
    )
    return join_sentences([judgement, _said(language, generator), pick(SMALL_TALK[language], generator)], language)


def _talk(language: Language, generator: Generator) -> str:
    chosen = generator.permutation(len(SMALL_TALK[language]))[:3]
    return join_sentences([*(SMALL_TALK[language][index] for index in chosen), _said(language, generator)], language)


def _said(language: Language, generator: Generator) -> str:
    """Something that people say: a refusal, a question back, or a plan without content."""
    steps = (COMPLIANCE_OPENERS, COMPLIANCE_FIRST_STEPS, COMPLIANCE_LAST_STEPS)
    plan = join_sentences([pick(part[language], generator) for part in steps], language)
    return pick((pick(REFUSALS[language], generator), pick(ASKING_BACK[language], generator), plan), generator)
