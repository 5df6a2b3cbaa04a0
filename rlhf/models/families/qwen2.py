"""Qwen2 and Qwen2.5 (2407.10671): LLaMA with biases at query, key and value, and a window in the upper layers if asked for."""

from dataclasses import replace
from typing import Any

from rlhf.models.config import ModelConfig
from rlhf.models.families import llama
from rlhf.models.families.family import Family
from rlhf.models.families.hf_config import ACTIVATION_NAMES, HfConfig, rope_to_hf

# Both say by `layer_types` what transformers has made of them.
INERT = ("max_window_layers", "use_sliding_window")


def read_common(options: HfConfig) -> dict[str, Any]:
    """What Qwen2 and Qwen3 have in common."""
    return llama.read_sizes(options) | {
        "norm_epsilon": options["rms_norm_eps"],
        "rope": options.rope(),
        "activation": options.activation("hidden_act"),
    }


def write_common(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_common`, with the window."""
    return llama.write_sizes(config) | {
        "rms_norm_eps": config.norm_epsilon,
        "rope_parameters": rope_to_hf(config.rope),
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "use_sliding_window": config.attention.window is not None,
        "sliding_window": config.attention.window,
        "layer_types": llama.write_layer_types(config),
    }


def read(options: HfConfig) -> dict[str, Any]:
    """Arguments of `ModelConfig`."""
    attention = replace(llama.read_window(options), output_bias=False)
    return read_common(options) | {"attention_bias": True, "attention": attention}


FAMILY = Family(
    model_type="qwen2",
    causal_architecture="Qwen2ForCausalLM",
    scorer_architecture="Qwen2ForSequenceClassification",
    read=read,
    write=write_common,
    tensors=llama.tensors,
    inert=INERT,
)
