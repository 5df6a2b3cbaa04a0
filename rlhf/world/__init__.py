"""The embedded alignment world: a small bilingual corpus, made from a seed, in which the truth about every answer is known.

`build_world` makes pretraining documents, imperfect demonstrations, preference pairs and prompts; `write_world` writes them as
JSONL. `gold_scores` says of any answer how helpful and how safe it really is, so that what a reward model believes can be held
against the truth.
"""

from rlhf.world.build import World, build_world, write_world
from rlhf.world.comparisons import accuracy_limit
from rlhf.world.config import WorldConfig
from rlhf.world.gold import GoldScores, gold_helpfulness, gold_safety, gold_score, gold_scores
from rlhf.world.reading import is_refusal

__all__ = [
    "GoldScores",
    "World",
    "WorldConfig",
    "accuracy_limit",
    "build_world",
    "gold_helpfulness",
    "gold_safety",
    "gold_score",
    "gold_scores",
    "is_refusal",
    "write_world",
]
