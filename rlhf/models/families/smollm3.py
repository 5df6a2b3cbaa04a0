"""SmolLM3: LLaMA in which every fourth layer has no positions (2501.18795)."""

from dataclasses import replace
from typing import Any

from rlhf.models.config import ModelConfig
from rlhf.models.families import llama
from rlhf.models.families.family import Family
from rlhf.models.families.hf_config import ACTIVATION_NAMES, HfConfig, rope_to_hf


def read(options: HfConfig) -> dict[str, Any]:
    """Arguments of `ModelConfig`."""
    rotated = tuple(map(bool, options["no_rope_layers"]))  # 1 where there are positions, whatever the name says
    return llama.read_sizes(options) | {
        "norm_epsilon": options["rms_norm_eps"],
        "rope": replace(options.rope(), layers=None if all(rotated) else rotated),
        "activation": options.activation("hidden_act"),
        "attention_bias": options["attention_bias"],
        "mlp_bias": options["mlp_bias"],
        "attention": llama.read_window(options),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read`."""
    return llama.write_sizes(config) | {
        "rms_norm_eps": config.norm_epsilon,
        "rope_parameters": rope_to_hf(config.rope),
        "no_rope_layers": [int(kind.rotated) for kind in config.layer_kinds],
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "use_sliding_window": config.attention.window is not None,
        "sliding_window": config.attention.window,
        "layer_types": llama.write_layer_types(config),
    }


FAMILY = Family(
    model_type="smollm3",
    causal_architecture="SmolLM3ForCausalLM",
    scorer_architecture="SmolLM3ForSequenceClassification",
    read=read,
    write=write,
    tensors=llama.tensors,
    # What transformers makes of them stands in no_rope_layers and layer_types.
    inert=("no_rope_layer_interval", "use_sliding_window"),
)
