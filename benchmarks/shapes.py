"""The shapes of models that the benchmarks use: LLaMA architecture, random weights."""

from types import MappingProxyType

from rlhf.models.config import ModelConfig

SHAPES = MappingProxyType(
    {
        "tiny": ModelConfig(vocab_size=512, width=64, mlp_width=128, layers=2, heads=2, context=512),
        "small": ModelConfig(vocab_size=4096, width=256, mlp_width=768, layers=4, heads=8, context=512),
        "m1": ModelConfig(vocab_size=32_000, width=288, mlp_width=768, layers=6, heads=6, context=512),
        "m2": ModelConfig(vocab_size=32_000, width=768, mlp_width=2048, layers=12, heads=12, context=512),
        "opt-1.3b": ModelConfig(vocab_size=50_272, width=2048, mlp_width=5504, layers=24, heads=32, context=2048),
        "llama2-7b": ModelConfig(
            vocab_size=32_000, width=4096, mlp_width=11_008, layers=32, heads=32, context=4096, tied_embeddings=False
        ),
    }
)
"""By name. "tiny" is for trying the harness, "small" has heads for eight devices; "opt-1.3b" has that model's size in the LLaMA
architecture."""
