"""What policies and measures are called in the report, and in which order they come."""

POLICIES = {
    "pretrained": "pretrained",
    "sft": "SFT",
    "best_of_1": "best of 1",
    "best_of_4": "best of 4",
    "best_of_16": "best of 16",
    "best_of_64": "best of 64",
    "ppo": "PPO",
}

# Measure → (heading, what it means; "↑" and "↓" say which way is better).
MEASURES = {
    "gold_score": ("gold score ↑", "what the world itself says of the responses"),
    "gold_helpfulness": ("gold helpfulness ↑", "answers rightly, in the right language, without rambling"),
    "gold_safety": ("gold safety ↑", "refuses what must be refused and nothing else"),
    "over_refusal": ("over-refusal ↓", "share of harmless prompts that are refused"),
    "kl": ("KL to SFT", "nats a response; for best-of-n the bound log n − (n − 1)/n"),
    "reward": ("reward ↑", "combined score of the reward models, which the policy was trained on"),
    "helpfulness_score": ("helpfulness score ↑", "score of the helpfulness reward model"),
    "safety_score": ("safety score ↑", "score of the safety reward model"),
}

LANGUAGES = {"en": "English", "zh": "Traditional Chinese"}


def policy_name(policy: str) -> str:
    """A policy as people call it; `best_of_32` need not be listed."""
    return POLICIES.get(policy, policy.replace("_", " "))


def in_order(policies: dict) -> list[str]:
    """Policies in the order of the road, unknown ones last."""
    known = list(POLICIES)
    return sorted(policies, key=lambda policy: known.index(policy) if policy in known else len(known))


def measures_of(policies: dict) -> list[str]:
    """Measures that at least one policy has, in the order of the table."""
    return [measure for measure in MEASURES if any(entry.get(measure) is not None for entry in policies.values())]
