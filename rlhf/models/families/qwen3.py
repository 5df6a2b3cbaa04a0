"""Qwen3 (2505.09388): queries and keys normalised head by head."""

from dataclasses import replace
from typing import Any

from rlhf.models.config import ModelConfig
from rlhf.models.families import llama, qwen2
from rlhf.models.families.family import Family
from rlhf.models.families.hf_config import HfConfig


def read(options: HfConfig) -> dict[str, Any]:
    """Arguments of `ModelConfig`."""
    return qwen2.read_common(options) | {
        "head_dim": llama.read_head_dim(options),
        "attention_bias": options["attention_bias"],
        "attention": replace(llama.read_window(options), query_key_norm="head"),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read`."""
    return qwen2.write_common(config) | {"head_dim": config.head_size, "attention_bias": config.attention_bias}


FAMILY = Family(
    model_type="qwen3",
    causal_architecture="Qwen3ForCausalLM",
    scorer_architecture="Qwen3ForSequenceClassification",
    read=read,
    write=write,
    tensors=llama.tensors,
    inert=qwen2.INERT,
)
