"""Gemma 2 (2408.00118): norms before and after each part, soft caps, and a window in every second layer."""

from dataclasses import replace
from typing import Any

from rlhf.models.config import AttentionConfig, ModelConfig
from rlhf.models.families import gemma, llama
from rlhf.models.families.family import Family
from rlhf.models.families.hf_config import ACTIVATION_NAMES, HfConfig, rope_to_hf
from rlhf.models.families.layouts import StoredTensor, norm


def read_attention(options: HfConfig) -> AttentionConfig:
    """Window, soft cap and scale."""
    return replace(
        llama.read_window(options),
        soft_cap=options["attn_logit_softcapping"],
        scale=options["query_pre_attn_scalar"] ** -0.5,
    )


def read(options: HfConfig) -> dict[str, Any]:
    """Arguments of `ModelConfig`."""
    return gemma.read_common(options) | {
        "norm_placement": "both",
        "activation": options.activation("hidden_activation"),
        "rope": options.rope(),
        "attention": read_attention(options),
        "logit_soft_cap": options["final_logit_softcapping"],
    }


def write_common(config: ModelConfig) -> dict[str, Any]:
    """What Gemma 2 and 3 have in common."""
    return gemma.write_common(config) | {
        "hidden_activation": ACTIVATION_NAMES[config.activation],
        "query_pre_attn_scalar": round(config.attention_scale**-2),
        "attn_logit_softcapping": config.attention.soft_cap,
        "final_logit_softcapping": config.logit_soft_cap,
        "sliding_window": config.attention.window,
        "layer_types": llama.write_layer_types(config),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read`."""
    return write_common(config) | {"rope_parameters": rope_to_hf(config.rope)}


def tensors(config: ModelConfig) -> list[StoredTensor]:
    """Every tensor of a checkpoint."""
    return [
        *llama.outer_tensors(),
        *norm(f"{llama.LAYER}.input_layernorm", "blocks.attention_norm"),
        *llama.attention_tensors(),
        *norm(f"{llama.LAYER}.post_attention_layernorm", "blocks.attention_output_norm"),
        *norm(f"{llama.LAYER}.pre_feedforward_layernorm", "blocks.mlp_norm"),
        *llama.mlp_tensors(),
        *norm(f"{llama.LAYER}.post_feedforward_layernorm", "blocks.mlp_output_norm"),
    ]


FAMILY = Family(
    model_type="gemma2",
    causal_architecture="Gemma2ForCausalLM",
    scorer_architecture="Gemma2ForSequenceClassification",
    read=read,
    write=write,
    tensors=tensors,
)
