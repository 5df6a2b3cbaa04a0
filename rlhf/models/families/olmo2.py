"""OLMo 2 (2501.00656): norms on the outputs of the parts only, and queries and keys normalised over all heads."""

from typing import Any

from rlhf.models.config import AttentionConfig, ModelConfig
from rlhf.models.families import llama
from rlhf.models.families.family import Family
from rlhf.models.families.hf_config import ACTIVATION_NAMES, HfConfig, rope_to_hf
from rlhf.models.families.layouts import StoredTensor, norm


def read(options: HfConfig) -> dict[str, Any]:
    """Arguments of `ModelConfig`."""
    return llama.read_sizes(options) | {
        "norm_epsilon": options["rms_norm_eps"],
        "norm_placement": "output",
        "rope": options.rope(),
        "activation": options.activation("hidden_act"),
        "attention_bias": options["attention_bias"],
        "attention": AttentionConfig(query_key_norm="all_heads"),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read`."""
    return llama.write_sizes(config) | {
        "rms_norm_eps": config.norm_epsilon,
        "rope_parameters": rope_to_hf(config.rope),
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "attention_bias": config.attention_bias,
    }


def tensors(config: ModelConfig) -> list[StoredTensor]:
    """Every tensor of a checkpoint."""
    return [
        *llama.outer_tensors(),
        *llama.attention_tensors(),
        *norm(f"{llama.LAYER}.post_attention_layernorm", "blocks.attention_output_norm"),
        *llama.mlp_tensors(),
        *norm(f"{llama.LAYER}.post_feedforward_layernorm", "blocks.mlp_output_norm"),
    ]


FAMILY = Family(
    model_type="olmo2",
    causal_architecture="Olmo2ForCausalLM",
    scorer_architecture="Olmo2ForSequenceClassification",
    read=read,
    write=write,
    tensors=tensors,
)
