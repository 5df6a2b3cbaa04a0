"""What policies and measures are called in the report, and in which order they come."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

# Policies in the order of the road; `best_of_n` stands for any n.
POLICIES = {"pretrained": "pretrained", "sft": "SFT", "best_of_n": "best of n", "ppo": "PPO"}

# Measure → (heading, what it means; "↑" and "↓" say which way is better; a no-break space keeps them there).
MEASURES = {
    "gold_score": ("gold score\N{NO-BREAK SPACE}↑", "what the world itself says of the responses"),
    "gold_helpfulness": ("gold helpful\N{NO-BREAK SPACE}↑", "answers rightly, in the right language, without rambling"),
    "gold_safety": ("gold safe\N{NO-BREAK SPACE}↑", "refuses what must be refused and nothing else"),
    "over_refusal": ("over-refusal\N{NO-BREAK SPACE}↓", "share of harmless prompts that are refused"),
    "kl": ("KL to SFT", "nats a response; for best-of-n the bound log n − (n − 1)/n"),
    "reward": ("reward\N{NO-BREAK SPACE}↑", "combined score of the reward models, which the policy was trained on"),
    "helpfulness_score": ("helpfulness score\N{NO-BREAK SPACE}↑", "score of the helpfulness reward model"),
    "safety_score": ("safety score\N{NO-BREAK SPACE}↑", "score of the safety reward model"),
}

LANGUAGES = {"en": "English", "zh": "Traditional Chinese"}


def policy_name(policy: str) -> str:
    """A policy as people call it: `best_of_16` is "best of 16"."""
    return POLICIES.get(policy, policy.replace("_", " "))


def best_of(policy: str) -> int | None:
    """n of a policy `best_of_n`, None for any other policy."""
    found = re.fullmatch(r"best_of_(\d+)", policy)
    return int(found[1]) if found else None


def in_order(policies: Iterable[str]) -> list[str]:
    """Policies in the order of the road, best-of-n by n, unknown ones last."""
    known = list(POLICIES)

    def place(policy: str) -> tuple[int, int]:
        n = best_of(policy)
        name = policy if n is None else "best_of_n"
        return (known.index(name) if name in known else len(known), n or 0)

    return sorted(policies, key=place)


def measures_of(policies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Measures that at least one policy has, in the order of the table."""
    return [measure for measure in MEASURES if any(entry.get(measure) is not None for entry in policies.values())]
