"""StableLM (2402.17834): layer norms and partly rotated heads in an otherwise LLaMA-like block."""

from typing import Any

from rlhf.models.config import AttentionConfig, ModelConfig
from rlhf.models.families import llama
from rlhf.models.families.family import Family
from rlhf.models.families.hf_config import ACTIVATION_NAMES, HfConfig, rope_to_hf


def read(options: HfConfig) -> dict[str, Any]:
    """Arguments of `ModelConfig`."""
    options.require_neutral(qk_layernorm=False)
    return llama.read_sizes(options) | {
        "norm": "layer",
        "norm_epsilon": options["layer_norm_eps"],
        "residual": "parallel_one_norm" if options["use_parallel_residual"] else "sequential",
        "rope": options.rope(partial=True),
        "activation": options.activation("hidden_act"),
        "attention_bias": options["use_qkv_bias"],
        "attention": AttentionConfig(output_bias=False),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read`."""
    return llama.write_sizes(config) | {
        "layer_norm_eps": config.norm_epsilon,
        "use_parallel_residual": config.residual == "parallel_one_norm",
        "rope_parameters": rope_to_hf(config.rope, partial=True),
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "use_qkv_bias": config.attention_bias,
        "hidden_dropout": 0.0,
    }


FAMILY = Family(
    model_type="stablelm",
    causal_architecture="StableLmForCausalLM",
    scorer_architecture="StableLmForSequenceClassification",
    read=read,
    write=write,
    tensors=llama.tensors,
    ignored=("rotary_emb.inv_freq",),
)
