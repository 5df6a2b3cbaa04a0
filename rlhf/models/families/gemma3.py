"""Gemma 3 (2503.19786), text only: normalised queries and keys; five layers with a window to one without, and rotary
positions of their own for each kind."""

from dataclasses import replace
from typing import Any

from rlhf.models.config import ModelConfig, RopeConfig
from rlhf.models.families import gemma, gemma2
from rlhf.models.families.family import Family
from rlhf.models.families.hf_config import HfConfig, rope_to_hf


def read(options: HfConfig) -> dict[str, Any]:
    """Arguments of `ModelConfig`."""
    rope = options.rope(options["rope_parameters"]["full_attention"])
    in_windows = options.rope(options["rope_parameters"]["sliding_attention"])
    if in_windows.scaling != "none":
        raise options.unsupported("rope scaling of sliding_attention", in_windows.scaling, ["default"])
    return gemma.read_common(options) | {
        "norm_placement": "both",
        "activation": options.activation("hidden_activation"),
        "rope": replace(rope, window_theta=in_windows.theta),
        "attention": replace(gemma2.read_attention(options), query_key_norm="head"),
        "logit_soft_cap": options["final_logit_softcapping"],
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read`."""
    in_windows = config.rope.theta if config.rope.window_theta is None else config.rope.window_theta
    rope = {
        "full_attention": rope_to_hf(config.rope),
        "sliding_attention": rope_to_hf(RopeConfig(theta=in_windows)),
    }
    return gemma2.write_common(config) | {"rope_parameters": rope}


FAMILY = Family(
    model_type="gemma3_text",
    causal_architecture="Gemma3ForCausalLM",
    scorer_architecture="Gemma3TextForSequenceClassification",
    read=read,
    write=write,
    tensors=gemma2.tensors,
    required=("hidden_size", "num_hidden_layers"),  # published files leave out what is at its default
)
