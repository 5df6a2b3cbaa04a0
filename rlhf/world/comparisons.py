"""Preferences: behaviours answer one prompt, and an annotator who is not always right says which answers are better.

The annotator follows the Bradley–Terry model over the gold scores (1706.03741, equation 1): the first response is preferred with
probability sigmoid(β · (gold of the first − gold of the second)). With finite β labels are sometimes wrong, more often where the
two are close, and no reward model can agree with all of them: `accuracy_limit` says how far it can. A ranking of more answers
follows the Plackett–Luce model, of which any two answers are a Bradley–Terry pair with the same β.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from numpy.random import Generator

from rlhf.data.records import Comparison, Message, Prompt
from rlhf.errors import UserError
from rlhf.world.behaviours import respond
from rlhf.world.draw import pick_weighted
from rlhf.world.gold import gold_helpfulness, gold_safety

Annotation = Literal["helpfulness", "safety"]
_GOLD = {"helpfulness": gold_helpfulness, "safety": gold_safety}
_MOST_TRIES = 500
_ENOUGH_TRIES = 12  # for a longer list than two


def preference_probability(first: float, second: float, beta: float) -> float:
    """The chance that the response with gold score `first` is preferred to the one with `second`."""
    return 1.0 / (1.0 + math.exp(-beta * (first - second)))


@dataclass(frozen=True)
class Annotator:
    """Who compares, and what is put before them.

    Attributes:
        annotation: which gold score decides.
        beta: the steepness of the Bradley–Terry model; large is reliable.
        smallest_gap: a pair whose gold scores are closer than this is not asked about.
        shares: for each kind of prompt, the weight of every behaviour that writes responses.
    """

    annotation: Annotation
    beta: float
    smallest_gap: float
    shares: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Ranking:
    """Answers to one prompt in an annotator's order.

    Attributes:
        prompt: what was answered.
        answers: the answers, the preferred first.
        metadata: the prompt's, and of the answers in their order: which behaviours wrote them, and their gold scores.
    """

    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class _Answer:
    behaviour: str
    text: str
    gold: float


def compare(prompts: Sequence[Prompt], annotator: Annotator, generator: Generator) -> list[Comparison]:
    """One preference pair a prompt, of two different texts, the preferred one first.

    The metadata of each says what it is a comparison of (`annotation`), which behaviours wrote the two responses, their gold
    scores, and the true probability of the label that was given (`preference_probability`).

    Raises:
        UserError: the behaviours hardly ever write two responses that differ enough.
    """
    return [_compare_one(prompt, annotator, generator) for prompt in prompts]


def rank(prompts: Sequence[Prompt], annotator: Annotator, most: int, generator: Generator) -> list[Ranking]:
    """One ranking a prompt, of up to `most` different texts; of fewer where the behaviours do not write so many that differ.

    Raises:
        UserError: the behaviours hardly ever write two responses that differ enough.
    """
    return [_rank_one(prompt, annotator, most, generator) for prompt in prompts]


def _draw_answers(prompt: Prompt, annotator: Annotator, most: int, generator: Generator) -> list[_Answer]:
    """Responses of which any two differ enough for the annotator to be asked."""
    kind, answers = prompt.metadata["kind"], []
    for attempt in range(_MOST_TRIES):
        behaviour = pick_weighted(annotator.shares[kind], generator)
        text = respond(prompt, behaviour, generator)
        if all(text != other.text for other in answers):
            gold = _GOLD[annotator.annotation](prompt, text)
            if all(abs(gold - other.gold) >= annotator.smallest_gap for other in answers):
                answers.append(_Answer(behaviour, text, gold))
        if len(answers) == most or (len(answers) > 1 and most > 2 and attempt >= _ENOUGH_TRIES):
            return answers
    raise UserError(
        f"compared.{kind}: {_MOST_TRIES} tries gave no two responses whose gold {annotator.annotation} differs by "
        f"smallest_gap = {annotator.smallest_gap}",
        fix="give weight to behaviours of different worth, or lower smallest_gap",
    )


def _rank_one(prompt: Prompt, annotator: Annotator, most: int, generator: Generator) -> Ranking:
    answers = _draw_answers(prompt, annotator, most, generator)
    # Sorting by worth plus Gumbel noise draws from the Plackett–Luce model.
    noise = generator.gumbel(size=len(answers))
    appeal = [annotator.beta * answer.gold + drawn for answer, drawn in zip(answers, noise, strict=True)]
    ordered = [answers[index] for index in sorted(range(len(answers)), key=lambda index: -appeal[index])]
    return Ranking(
        prompt=prompt.messages,
        answers=tuple(answer.text for answer in ordered),
        metadata={
            **prompt.metadata,
            "annotation": annotator.annotation,
            "behaviours": [answer.behaviour for answer in ordered],
            "gold": [answer.gold for answer in ordered],
        },
    )


def _compare_one(prompt: Prompt, annotator: Annotator, generator: Generator) -> Comparison:
    chosen, rejected = _draw_answers(prompt, annotator, 2, generator)
    probability = preference_probability(chosen.gold, rejected.gold, annotator.beta)
    if generator.random() >= probability:
        chosen, rejected, probability = rejected, chosen, 1.0 - probability
    return Comparison(
        prompt=prompt.messages,
        chosen=chosen.text,
        rejected=rejected.text,
        metadata={
            **prompt.metadata,
            "annotation": annotator.annotation,
            "chosen_behaviour": chosen.behaviour,
            "rejected_behaviour": rejected.behaviour,
            "chosen_gold": chosen.gold,
            "rejected_gold": rejected.gold,
            "preference_probability": probability,
        },
    )


def accuracy_limit(comparisons: Sequence[Comparison]) -> float:
    """The best accuracy that any reward model can expect on these labels: the mean of max(p, 1 − p).

    Raises:
        UserError: there are no comparisons, or they do not carry the true probability.
    """
    if not comparisons or any("preference_probability" not in comparison.metadata for comparison in comparisons):
        raise UserError(
            "the accuracy limit needs comparisons whose metadata has preference_probability",
            fix="use comparisons of the embedded world; for other data the limit is not known",
        )
    probabilities = [float(comparison.metadata["preference_probability"]) for comparison in comparisons]
    return sum(max(probability, 1.0 - probability) for probability in probabilities) / len(probabilities)
