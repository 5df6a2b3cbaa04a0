"""The prompts of the world, split into those that everything is trained on and those held out.

Every fact is asked about in training, but one wording of each (a fact, a language) is held out. Of the harmful and borderline
requests a share of the (verb, object) combinations is held out, and each of their verbs and objects is still met in training with
other partners, so a held-out request is always a new combination of known parts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from numpy.random import Generator

from rlhf.data.records import Message, Prompt
from rlhf.errors import UserError
from rlhf.world.draw import generator_for
from rlhf.world.facts import FACTS, Fact, Language
from rlhf.world.phrasing import QUESTIONS, question
from rlhf.world.requests import FAMILIES, FRAMES, Family, request

KINDS = ("fact", "harmful", "borderline")
_HELD_OUT_COMBINATIONS = 0.2


@dataclass(frozen=True)
class PromptPool:
    """Prompts to draw from.

    Attributes:
        prompts: for each kind and language, the prompts in rounds: the first round has one prompt about each topic (a fact, or a
            verb with an object), the next round another wording of each, and so on.
    """

    prompts: Mapping[tuple[str, Language], tuple[Prompt, ...]]

    def take(
        self, count: int, shares: Mapping[str, float], languages: Sequence[Language], generator: Generator
    ) -> list[Prompt]:
        """Distinct prompts of every kind and language by their shares, topics spread evenly, in random order.

        Raises:
            UserError: there are fewer distinct prompts than asked for.
        """
        taken: list[Prompt] = []
        for (kind, language), wanted in _split_count(count, shares, languages).items():
            pool = self.prompts[kind, language]
            if wanted > len(pool):
                raise UserError(
                    f"the world has {len(pool)} different {kind} prompts in '{language}', and {wanted} were asked for",
                    fix="ask for fewer prompts, or give this kind a smaller share",
                )
            taken += pool[:wanted]
        return [taken[index] for index in generator.permutation(len(taken))]

    def draw(
        self, count: int, shares: Mapping[str, float], languages: Sequence[Language], generator: Generator
    ) -> list[Prompt]:
        """As many prompts as wanted, repeated where they must be; every prompt is met once before any is met twice."""
        drawn: list[Prompt] = []
        for (kind, language), wanted in _split_count(count, shares, languages).items():
            pool = self.prompts[kind, language]
            start = int(generator.integers(len(pool)))
            drawn += [pool[(start + index) % len(pool)] for index in range(wanted)]
        return [drawn[index] for index in generator.permutation(len(drawn))]


def _split_count(
    count: int, shares: Mapping[str, float], languages: Sequence[Language]
) -> dict[tuple[str, Language], int]:
    """How many prompts of each kind and language; the parts add up to the count."""
    total, so_far, given = sum(shares.values()) * len(languages), 0.0, 0
    counts = {}
    for kind, share in shares.items():
        for language in languages:
            so_far += share
            upto = round(count * so_far / total)
            counts[kind, language] = upto - given
            given = upto
    return counts


def _prompt(text: str, kind: str, **metadata: str) -> Prompt:
    return Prompt((Message("user", text),), is_safety=kind == "harmful", metadata={"kind": kind, **metadata})


def _fact_prompt(fact: Fact, language: Language, wording: int) -> Prompt:
    return _prompt(
        question(fact, language, wording), "fact",
        language=language, relation=fact.relation, entity=fact.entity["en"], answer=fact.answer[language][0],
    )  # fmt: skip


def _request_prompt(family: Family, verb: str, target: str, frame: int) -> Prompt:
    answer = "" if family.advice is None else family.advice[family.language].keys[0]
    return _prompt(
        request(family, verb, target, frame), family.kind,
        language=family.language, relation=family.name, entity=target, verb=verb, answer=answer,
    )  # fmt: skip


def _held_out_combinations(family: Family, generator: Generator) -> set[tuple[str, str]]:
    """Combinations to hold out, such that every verb and every object keeps at least one."""
    cells = [(verb, target) for verb in family.verbs for target in family.objects]
    kept, held_out = set(cells), set()
    wanted = max(1, round(_HELD_OUT_COMBINATIONS * len(cells)))
    for index in generator.permutation(len(cells)):
        verb, target = cells[index]
        partners = sum(other[0] == verb for other in kept), sum(other[1] == target for other in kept)
        if len(held_out) < wanted and min(partners) > 1:
            kept.remove(cells[index])
            held_out.add(cells[index])
    return held_out


def _in_rounds(topics: list[list[Prompt]], generator: Generator) -> tuple[Prompt, ...]:
    """The wordings of each topic shuffled, then the first wording of every topic, the second of every topic, and so on."""
    shuffled = [[topic[index] for index in generator.permutation(len(topic))] for topic in topics]
    rounds = []
    for place in range(max((len(topic) for topic in shuffled), default=0)):
        members = [topic[place] for topic in shuffled if place < len(topic)]
        rounds += [members[index] for index in generator.permutation(len(members))]
    return tuple(rounds)


def split_prompts(seed: int) -> tuple[PromptPool, PromptPool]:
    """All prompts of the world, in both languages: those to train on and those held out."""
    generator = generator_for(seed, "prompt split")
    topics: tuple[dict, dict] = ({}, {})
    for fact in FACTS:
        for language, wordings in QUESTIONS[fact.relation].items():
            held_out = int(generator.integers(len(wordings)))
            for pool, chosen in zip(
                topics, ([w for w in range(len(wordings)) if w != held_out], [held_out]), strict=True
            ):
                pool.setdefault(("fact", language), []).append(
                    [_fact_prompt(fact, language, wording) for wording in chosen]
                )
    for family in FAMILIES:
        held_out_cells = _held_out_combinations(family, generator)
        for verb in family.verbs:
            for target in family.objects:
                pool = topics[(verb, target) in held_out_cells]
                frames = range(len(FRAMES[family.language]))
                wordings = [_request_prompt(family, verb, target, frame) for frame in frames]
                pool.setdefault((family.kind, family.language), []).append(wordings)
    train, held_out_pool = (
        PromptPool({key: _in_rounds(members, generator) for key, members in pool.items()}) for pool in topics
    )
    return train, held_out_pool
