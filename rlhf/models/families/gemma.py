"""Gemma (2403.08295): LLaMA with scaled embeddings, norms whose scale counts from 1, and a tanh-approximated GELU gate."""

from typing import Any

from rlhf.models.config import ModelConfig
from rlhf.models.families import llama
from rlhf.models.families.family import Family
from rlhf.models.families.hf_config import ACTIVATION_NAMES, HfConfig, rope_to_hf


def read_common(options: HfConfig) -> dict[str, Any]:
    """What the three generations have in common."""
    options.require_neutral(use_bidirectional_attention=False)
    return llama.read_sizes(options) | {
        "head_dim": llama.read_head_dim(options),
        "norm_epsilon": options["rms_norm_eps"],
        "norm_scale_from_one": True,
        "attention_bias": options["attention_bias"],
        "embedding_scale": options["hidden_size"] ** 0.5,
    }


def write_common(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_common`."""
    return llama.write_sizes(config) | {
        "head_dim": config.head_size,
        "rms_norm_eps": config.norm_epsilon,
        "attention_bias": config.attention_bias,
    }


def read(options: HfConfig) -> dict[str, Any]:
    """Arguments of `ModelConfig`."""
    return read_common(options) | {"activation": options.activation("hidden_act"), "rope": options.rope()}


def write(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read`."""
    return write_common(config) | {
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "rope_parameters": rope_to_hf(config.rope),
    }


FAMILY = Family(
    model_type="gemma",
    causal_architecture="GemmaForCausalLM",
    scorer_architecture="GemmaForSequenceClassification",
    read=read,
    write=write,
    tensors=llama.tensors,
)
