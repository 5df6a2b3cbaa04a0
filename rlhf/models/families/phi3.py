"""Phi-3 (2404.14219) with a context of 4k: query, key and value in one matrix, gate and up in another."""

from typing import Any

from rlhf.models.config import AttentionConfig, ModelConfig
from rlhf.models.families import llama
from rlhf.models.families.family import Family
from rlhf.models.families.hf_config import ACTIVATION_NAMES, HfConfig, rope_to_hf
from rlhf.models.families.layouts import StoredTensor, linear, norm


def read(options: HfConfig) -> dict[str, Any]:
    """Arguments of `ModelConfig`."""
    return llama.read_sizes(options) | {
        "norm_epsilon": options["rms_norm_eps"],
        "rope": options.rope(partial=True),
        "activation": options.activation("hidden_act"),
        "attention": AttentionConfig(window=options["sliding_window"]),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read`."""
    return llama.write_sizes(config) | {
        "rms_norm_eps": config.norm_epsilon,
        "rope_parameters": rope_to_hf(config.rope, partial=True),
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "sliding_window": config.attention.window,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "pad_token_id": None,
    }


def tensors(config: ModelConfig) -> list[StoredTensor]:
    """Every tensor of a checkpoint."""
    heads = [f"blocks.attention.{name}" for name in ("query", "key", "value")]
    return [
        *llama.outer_tensors(),
        *norm(f"{llama.LAYER}.input_layernorm", "blocks.attention_norm"),
        *linear(f"{llama.LAYER}.self_attn.qkv_proj", *heads),
        *linear(f"{llama.LAYER}.self_attn.o_proj", "blocks.attention.output", input_axes=2),
        *norm(f"{llama.LAYER}.post_attention_layernorm", "blocks.mlp_norm"),
        *linear(f"{llama.LAYER}.mlp.gate_up_proj", "blocks.mlp.gate", "blocks.mlp.up"),
        *linear(f"{llama.LAYER}.mlp.down_proj", "blocks.mlp.down"),
    ]


FAMILY = Family(
    model_type="phi3",
    causal_architecture="Phi3ForCausalLM",
    scorer_architecture="Phi3ForSequenceClassification",
    read=read,
    write=write,
    tensors=tensors,
    inert=("original_max_position_embeddings",),  # of account for scaled positions only, which are refused
)
