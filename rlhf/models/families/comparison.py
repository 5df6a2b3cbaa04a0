"""Whether two descriptions mean the same network."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

from rlhf.models.config import ModelConfig, RopeConfig

NOT_COMPUTED = ("family", "token_count", "initializer_std")


def first_difference(one: ModelConfig, other: ModelConfig) -> tuple[str, Any, Any] | None:
    """The first choice in which the networks differ: dotted name and both values; None when they compute the same."""
    return _first_difference(_resolved(one), _resolved(other))


def _first_difference(one: Any, other: Any, section: str = "") -> tuple[str, Any, Any] | None:
    for field in fields(one):
        value, other_value = getattr(one, field.name), getattr(other, field.name)
        if value == other_value or (not section and field.name in NOT_COMPUTED):
            continue
        if is_dataclass(value):
            return _first_difference(value, other_value, f"{field.name}.")
        return f"{section}{field.name}", value, other_value
    return None


def _resolved(config: ModelConfig) -> ModelConfig:
    """The same network with every default spelled out, and choices without effect put back to their defaults."""
    kinds = config.layer_kinds
    windowed = any(kind.windowed for kind in kinds)
    attention = replace(
        config.attention,
        output_bias=config.attention_output_bias,
        scale=config.attention_scale,
        window=config.attention.window if windowed else None,
        window_layers=tuple(kind.windowed for kind in kinds) if windowed else None,
        scaled_alibi=config.position == "alibi" and config.attention.scaled_alibi,
    )
    return replace(
        config,
        kv_heads=config.key_value_heads,
        head_dim=config.head_size,
        embedding_width=None if config.embedding_width == config.width else config.embedding_width,
        position_offset=config.position_offset if config.position == "learned" else 0,
        rope=_resolved_rope(config, windowed) if config.position == "rope" else RopeConfig(),
        attention=attention,
    )


def _resolved_rope(config: ModelConfig, windowed: bool) -> RopeConfig:
    rope = config.rope
    layers = None if all(kind.rotated for kind in config.layer_kinds) else rope.layers
    same_base = rope.window_theta == rope.theta and rope.scaling == "none"
    rope = replace(rope, layers=layers, window_theta=None if same_base or not windowed else rope.window_theta)
    if rope.scaling == "llama3":
        return rope
    unscaled = RopeConfig()
    return replace(
        rope,
        factor=rope.factor if rope.scaling == "linear" else unscaled.factor,
        low_frequency_factor=unscaled.low_frequency_factor,
        high_frequency_factor=unscaled.high_frequency_factor,
        original_context=unscaled.original_context,
    )
