"""Preference pairs: two behaviours answer one prompt, and an annotator who is not always right says which is better.

The annotator follows the Bradley–Terry model over the gold scores (1706.03741, equation 1): the first response is preferred with
probability sigmoid(β · (gold of the first − gold of the second)). With finite β labels are sometimes wrong, more often where the
two are close, and no reward model can agree with all of them: `accuracy_limit` says how far it can.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from numpy.random import Generator

from rlhf.data.records import Comparison, Prompt
from rlhf.errors import UserError
from rlhf.world.behaviours import respond
from rlhf.world.draw import pick_weighted
from rlhf.world.gold import gold_helpfulness, gold_safety

Annotation = Literal["helpfulness", "safety"]
_GOLD = {"helpfulness": gold_helpfulness, "safety": gold_safety}


def preference_probability(first: float, second: float, beta: float) -> float:
    """The chance that the response with gold score `first` is preferred to the one with `second`."""
    return 1.0 / (1.0 + math.exp(-beta * (first - second)))


def compare(
    prompts: Sequence[Prompt],
    annotation: Annotation,
    shares: Mapping[str, Mapping[str, float]],
    beta: float,
    generator: Generator,
) -> list[Comparison]:
    """One preference pair a prompt, the preferred response first.

    The metadata of each says what it is a comparison of (`annotation`), which behaviours wrote the two responses, their gold
    scores, and the true probability of the label that was given (`preference_probability`).

    Args:
        prompts: what is answered.
        annotation: which gold score the annotator goes by.
        shares: for each kind of prompt, the weight of every behaviour; the two responses of a pair have different texts.
        beta: the steepness of the Bradley–Terry model; large is reliable.
        generator: the source of chance.
    """
    return [_compare_one(prompt, annotation, shares[prompt.metadata["kind"]], beta, generator) for prompt in prompts]


def _compare_one(
    prompt: Prompt, annotation: Annotation, weights: Mapping[str, float], beta: float, generator: Generator
) -> Comparison:
    behaviours = [pick_weighted(weights, generator) for _ in range(2)]
    responses = [respond(prompt, behaviour, generator) for behaviour in behaviours]
    while responses[0] == responses[1]:
        behaviours[1] = pick_weighted(weights, generator)
        responses[1] = respond(prompt, behaviours[1], generator)
    gold = [_GOLD[annotation](prompt, response) for response in responses]
    probability = preference_probability(gold[0], gold[1], beta)
    first_wins = bool(generator.random() < probability)
    chosen, rejected = (0, 1) if first_wins else (1, 0)
    return Comparison(
        prompt=prompt.messages,
        chosen=responses[chosen],
        rejected=responses[rejected],
        metadata={
            **prompt.metadata,
            "annotation": annotation,
            "chosen_behaviour": behaviours[chosen],
            "rejected_behaviour": behaviours[rejected],
            "chosen_gold": gold[chosen],
            "rejected_gold": gold[rejected],
            "preference_probability": probability if first_wins else 1.0 - probability,
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
