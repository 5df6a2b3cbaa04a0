"""BLOOM (2211.05100): ALiBi, a norm on the embeddings, one matrix for query, key and value."""

from typing import Any

from rlhf.models.config import ModelConfig
from rlhf.models.families.family import Family
from rlhf.models.families.hf_config import HfConfig
from rlhf.models.families.layouts import StoredTensor, kept, linear, matrix, norm

LAYER = "transformer.h.{layer}"


def read(options: HfConfig) -> dict[str, Any]:
    """Arguments of `ModelConfig`. With ALiBi there is no longest position; the context is what it was trained with."""
    options.require_neutral(apply_residual_connection_post_layernorm=False)
    width = options["hidden_size"]
    return {
        "vocab_size": options["vocab_size"],
        "width": width,
        "layers": options["n_layer"],
        "heads": options["n_head"],
        "mlp_width": 4 * width,
        "context": options.raw.get("seq_length", 2048),
        "norm": "layer",
        "norm_epsilon": options["layer_norm_epsilon"],
        "embedding_norm": True,
        "position": "alibi",
        "activation": "gelu_tanh",
        "gated_mlp": False,
        "attention_bias": True,
        "mlp_bias": True,
        "tied_embeddings": options["tie_word_embeddings"],
        "initializer_std": options["initializer_range"],
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read`."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "seq_length": config.context,
        "layer_norm_epsilon": config.norm_epsilon,
        "tie_word_embeddings": config.tied_embeddings,
        "initializer_range": config.initializer_std,
        "use_cache": True,
    }


def tensors(config: ModelConfig) -> list[StoredTensor]:
    """Every tensor of a checkpoint."""
    heads = [f"blocks.attention.{name}" for name in ("query", "key", "value")]
    return [
        kept("transformer.word_embeddings.weight", "embedding"),
        *norm("transformer.word_embeddings_layernorm", "embedding_norm"),
        *norm(f"{LAYER}.input_layernorm", "blocks.attention_norm"),
        *linear(f"{LAYER}.self_attention.query_key_value", *heads, grouped=True),
        *linear(f"{LAYER}.self_attention.dense", "blocks.attention.output", input_axes=2),
        *norm(f"{LAYER}.post_attention_layernorm", "blocks.mlp_norm"),
        *linear(f"{LAYER}.mlp.dense_h_to_4h", "blocks.mlp.up"),
        *linear(f"{LAYER}.mlp.dense_4h_to_h", "blocks.mlp.down"),
        *norm("transformer.ln_f", "final_norm"),
        matrix("lm_head.weight", "head_kernel"),
    ]


FAMILY = Family(
    model_type="bloom",
    causal_architecture="BloomForCausalLM",
    scorer_architecture="BloomForSequenceClassification",
    read=read,
    write=write,
    tensors=tensors,
    required=("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    inert=("slow_but_exact",),  # how sums over tensor-parallel ranks are ordered
    prefix="transformer.",
)
