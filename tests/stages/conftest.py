"""A small world on disk, and untrained models of one tokenizer, from which every stage can start without waiting for another."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from flax import nnx

from rlhf.data.sources import DataConfig, load_demonstrations
from rlhf.data.templates import apply_template
from rlhf.data.tokenizers import train_tokenizer
from rlhf.models.config import ModelConfig
from rlhf.models.heads import SequenceScorer
from rlhf.models.hub import save_scorer, save_transformer
from rlhf.models.transformer import Transformer
from rlhf.stages import world as world_stage
from rlhf.world.config import WorldConfig

VOCABULARY = 400


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """Folder of a small world in English."""
    folder = tmp_path_factory.mktemp("world")
    config = WorldConfig(
        languages=("en",),
        documents=40,
        demonstrations=24,
        helpfulness_rankings=24,
        safety_rankings=24,
        held_out_comparisons=16,
        prompts=24,
        held_out_prompts=12,
    )
    world_stage.run(world_stage.Config(output=str(folder), world=config))
    return folder


@pytest.fixture(scope="session")
def folders(world, tmp_path_factory) -> SimpleNamespace:
    """Folders of two untrained policies and of two reward models; tests do not write to them."""
    root = tmp_path_factory.mktemp("models")
    dialogues = load_demonstrations(DataConfig(path=str(world / "demonstrations.jsonl")))
    tokenizer = train_tokenizer(
        [message.content for dialogue in dialogues for message in dialogue.messages], VOCABULARY
    )
    apply_template(tokenizer, "user_ai")
    architecture = ModelConfig(
        vocab_size=VOCABULARY, width=16, layers=2, heads=2, kv_heads=1, mlp_width=24, context=128, initializer_std=0.3
    )

    def network(seed: int) -> Transformer:
        return Transformer(architecture, rngs=nnx.Rngs(seed))

    save_transformer(network(0), root / "policy", tokenizer)
    save_transformer(network(3), root / "other_policy", tokenizer)
    for seed, kind in enumerate(("helpfulness", "safety"), start=1):
        save_scorer(SequenceScorer(network(seed), rngs=nnx.Rngs(seed)), root / kind, tokenizer)
    return SimpleNamespace(**{name: str(root / name) for name in ("policy", "other_policy", "helpfulness", "safety")})
