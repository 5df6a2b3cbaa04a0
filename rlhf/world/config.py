"""What the world contains: sizes, shares, how reliable its annotators are."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rlhf.errors import UserError
from rlhf.world.behaviours import APPLICABLE
from rlhf.world.facts import LANGUAGES
from rlhf.world.noise import NOISE
from rlhf.world.prompts import KINDS

Shares = dict[str, float]


@dataclass(frozen=True)
class DemonstrationShares:
    """Which behaviours are demonstrated, as weights by name.

    Attributes:
        fact: for questions of fact.
        harmful: for harmful requests.
        borderline: for harmless requests that sound harmful.
    """

    fact: Shares = field(
        default_factory=lambda: {
            "right": 0.4,
            "wrong": 0.05,
            "rambling": 0.25,
            "ask_back": 0.15,
            "wrong_language": 0.15,
        }
    )
    harmful: Shares = field(default_factory=lambda: {"refusal": 0.5, "compliance": 0.45, "ask_back": 0.05})
    borderline: Shares = field(
        default_factory=lambda: {
            "right": 0.35,
            "refusal": 0.4,
            "rambling": 0.15,
            "ask_back": 0.05,
            "wrong_language": 0.05,
        }
    )


@dataclass(frozen=True)
class ComparisonShares:
    """Which behaviours are compared, as weights by name.

    Attributes:
        fact: for questions of fact.
        harmful: for harmful requests.
        borderline: for harmless requests that sound harmful.
    """

    fact: Shares = field(
        default_factory=lambda: {
            "right": 0.34, "wrong": 0.10, "off_topic": 0.08, "rambling": 0.11, "small_talk": 0.08, "ask_back": 0.05,
            "wrong_language": 0.07, "hedging": 0.02, "refusal": 0.04, "refuse_and_comply": 0.01, "broken": 0.05, "near_empty": 0.01,
            "no_answer": 0.04,
        }
    )  # fmt: skip
    harmful: Shares = field(
        default_factory=lambda: {
            "refusal": 0.38, "compliance": 0.32, "off_topic": 0.08, "small_talk": 0.04, "ask_back": 0.05,
            "wrong_language": 0.03, "refuse_and_comply": 0.05, "broken": 0.04, "near_empty": 0.01,
        }
    )  # fmt: skip
    borderline: Shares = field(
        default_factory=lambda: {
            "right": 0.35, "refusal": 0.20, "compliance": 0.08, "wrong": 0.07, "off_topic": 0.06, "rambling": 0.05,
            "small_talk": 0.05, "ask_back": 0.04, "wrong_language": 0.04, "hedging": 0.02, "refuse_and_comply": 0.01,
            "broken": 0.02, "near_empty": 0.01,
        }
    )  # fmt: skip


@dataclass(frozen=True)
class WorldConfig:
    """What the world contains.

    Attributes:
        seed: the world's seed, 0 or more; the same seed gives the same files.
        languages: which of "en" and "zh" are written, in equal measure.
        documents: pretraining documents, noisy ones included.
        demonstrations: dialogues for supervised fine-tuning.
        helpfulness_rankings: prompts whose answers the helpfulness annotators put in order.
        safety_rankings: the same of the safety annotators; fewer, because it is the easier matter.
        answers: most answers to such a prompt; 2 for preference pairs.
        held_out_comparisons: preference pairs of each kind over held-out prompts.
        prompts: prompts for reinforcement learning, all different.
        held_out_prompts: prompts for evaluation, all different.
        noise: the share of the documents with each kind of noise.
        helpfulness_beta: how reliable the helpfulness annotators are: P(a preferred to b) = sigmoid(beta · (gold a − gold b)).
        safety_beta: how reliable the safety annotators are; lower, because safe and unsafe lie further apart.
        smallest_gap: annotators are not asked about two responses whose gold scores are closer than this.
        prompt_shares: the weights of the kinds of prompts among demonstrations and prompts.
        helpfulness_shares: the weights of the kinds of prompts among the helpfulness comparisons.
        safety_shares: the weights of the kinds of prompts among the safety comparisons.
        demonstrated: which behaviours are demonstrated.
        compared: which behaviours are compared.
    """

    seed: int = 0
    languages: tuple[str, ...] = LANGUAGES
    documents: int = 8000
    demonstrations: int = 5000
    helpfulness_rankings: int = 18000
    safety_rankings: int = 7000
    answers: int = 4
    held_out_comparisons: int = 1600
    prompts: int = 1000
    held_out_prompts: int = 200
    noise: Shares = field(
        default_factory=lambda: {
            "boilerplate": 0.03,
            "html": 0.02,
            "duplicate": 0.02,
            "near_duplicate": 0.02,
            "gibberish": 0.01,
        }
    )
    helpfulness_beta: float = 4.0
    safety_beta: float = 3.0
    smallest_gap: float = 0.1
    prompt_shares: Shares = field(default_factory=lambda: {"fact": 0.6, "harmful": 0.2, "borderline": 0.2})
    helpfulness_shares: Shares = field(default_factory=lambda: {"fact": 0.65, "harmful": 0.15, "borderline": 0.2})
    safety_shares: Shares = field(default_factory=lambda: {"fact": 0.15, "harmful": 0.5, "borderline": 0.35})
    demonstrated: DemonstrationShares = field(default_factory=DemonstrationShares)
    compared: ComparisonShares = field(default_factory=ComparisonShares)


def _check_weights(key: str, weights: Mapping[str, float], known: Iterable[str]) -> None:
    unknown = sorted(set(weights) - set(known))
    if unknown:
        raise UserError(f"{key}: unknown name {', '.join(unknown)}", fix=f"use some of {', '.join(sorted(known))}")
    if any(weight < 0 for weight in weights.values()) or not sum(weights.values()) > 0:
        raise UserError(
            f"{key}: weights must be 0 or more and not all 0, found {dict(weights)}", fix=f"give {key} positive weights"
        )


def check_config(config: WorldConfig) -> None:
    """Refuse a configuration from which no world can be built.

    Raises:
        UserError: names the key, what is wrong with it and what to do.
    """
    for key in (
        "seed",
        "documents",
        "demonstrations",
        "helpfulness_rankings",
        "safety_rankings",
        "held_out_comparisons",
        "prompts",
        "held_out_prompts",
    ):
        if getattr(config, key) < 0:
            raise UserError(
                f"{key}: expected 0 or more, found {getattr(config, key)}", fix=f"set {key} to 0 or a positive number"
            )
    if config.answers < 2:
        raise UserError(
            f"answers: expected 2 or more, found {config.answers}", fix="set answers to 2 for preference pairs"
        )
    if not config.languages or not set(config.languages) <= set(LANGUAGES):
        raise UserError(
            f"languages: expected some of {list(LANGUAGES)}, found {list(config.languages)}", fix="use en, zh or both"
        )
    for key in ("helpfulness_beta", "safety_beta"):
        if not getattr(config, key) > 0:
            raise UserError(
                f"{key}: expected more than 0, found {getattr(config, key)}",
                fix="3 to 8 gives fairly reliable annotators",
            )
    if (
        sum(config.noise.values()) >= 1
        or not set(config.noise) <= set(NOISE)
        or any(share < 0 for share in config.noise.values())
    ):
        raise UserError(
            f"noise: expected shares of {sorted(NOISE)} below 1 in all, found {config.noise}", fix="lower the shares"
        )
    for key in ("prompt_shares", "helpfulness_shares", "safety_shares"):
        _check_weights(key, getattr(config, key), KINDS)
    for key in ("demonstrated", "compared"):
        for kind in KINDS:
            _check_weights(f"{key}.{kind}", getattr(getattr(config, key), kind), APPLICABLE[kind])
