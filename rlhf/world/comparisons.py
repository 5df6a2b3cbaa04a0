"""Preference pairs: two behaviours answer one prompt, and an annotator who is not always right says which is better.

The annotator follows the Bradley–Terry model over the gold scores (1706.03741, equation 1): the first response is preferred with
probability sigmoid(β · (gold of the first − gold of the second)). With finite β labels are sometimes wrong, more often where the
two are close, and no reward model can agree with all of them: `accuracy_limit` says how far it can.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from numpy.random import Generator

from rlhf.data.records import Comparison, Prompt
from rlhf.errors import UserError
from rlhf.world.behaviours import respond
from rlhf.world.draw import pick_weighted
from rlhf.world.gold import gold_helpfulness, gold_safety

Annotation = Literal["helpfulness", "safety"]
_GOLD = {"helpfulness": gold_helpfulness, "safety": gold_safety}
_MOST_TRIES = 500


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


def compare(prompts: Sequence[Prompt], annotator: Annotator, generator: Generator) -> list[Comparison]:
    """One preference pair a prompt, of two different texts, the preferred one first.

    The metadata of each says what it is a comparison of (`annotation`), which behaviours wrote the two responses, their gold
    scores, and the true probability of the label that was given (`preference_probability`).

    Raises:
        UserError: the behaviours hardly ever write two responses that differ enough.
    """
    return [_compare_one(prompt, annotator, generator) for prompt in prompts]


def _draw_pair(prompt: Prompt, annotator: Annotator, generator: Generator) -> list[tuple[str, str, float]]:
    """Two responses that differ enough, each as (behaviour, text, gold score)."""
    kind = prompt.metadata["kind"]
    for _ in range(_MOST_TRIES):
        pair = []
        for _ in range(2):
            behaviour = pick_weighted(annotator.shares[kind], generator)
            text = respond(prompt, behaviour, generator)
            pair.append((behaviour, text, _GOLD[annotator.annotation](prompt, text)))
        (_, first, first_gold), (_, second, second_gold) = pair
        if first != second and abs(first_gold - second_gold) >= annotator.smallest_gap:
            return pair
    raise UserError(
        f"compared.{kind}: {_MOST_TRIES} tries gave no two responses whose gold {annotator.annotation} differs by "
        f"smallest_gap = {annotator.smallest_gap}",
        fix="give weight to behaviours of different worth, or lower smallest_gap",
    )


def _compare_one(prompt: Prompt, annotator: Annotator, generator: Generator) -> Comparison:
    pair = _draw_pair(prompt, annotator, generator)
    probability = preference_probability(pair[0][2], pair[1][2], annotator.beta)
    if generator.random() >= probability:
        pair.reverse()
        probability = 1.0 - probability
    (chosen_behaviour, chosen, chosen_gold), (rejected_behaviour, rejected, rejected_gold) = pair
    return Comparison(
        prompt=prompt.messages,
        chosen=chosen,
        rejected=rejected,
        metadata={
            **prompt.metadata,
            "annotation": annotator.annotation,
            "chosen_behaviour": chosen_behaviour,
            "rejected_behaviour": rejected_behaviour,
            "chosen_gold": chosen_gold,
            "rejected_gold": rejected_gold,
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
