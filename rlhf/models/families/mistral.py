"""Mistral (2310.06825): LLaMA with an attention window."""

from typing import Any

from rlhf.models.config import AttentionConfig, ModelConfig
from rlhf.models.families import llama
from rlhf.models.families.family import Family
from rlhf.models.families.hf_config import ACTIVATION_NAMES, HfConfig, rope_to_hf


def read(options: HfConfig) -> dict[str, Any]:
    """Arguments of `ModelConfig`."""
    return llama.read_sizes(options) | {
        "head_dim": llama.read_head_dim(options),
        "norm_epsilon": options["rms_norm_eps"],
        "rope": options.rope(),
        "activation": options.activation("hidden_act"),
        "attention": AttentionConfig(window=options["sliding_window"]),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read`."""
    return llama.write_sizes(config) | {
        "head_dim": config.head_size,
        "rms_norm_eps": config.norm_epsilon,
        "rope_parameters": rope_to_hf(config.rope),
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "sliding_window": config.attention.window,
    }


FAMILY = Family(
    model_type="mistral",
    causal_architecture="MistralForCausalLM",
    scorer_architecture="MistralForSequenceClassification",
    read=read,
    write=write,
    tensors=llama.tensors,
    ignored=("rotary_emb.inv_freq",),
)
