"""GPT-NeoX (2204.06745) and Pythia (2304.01373): parallel residual, partly rotated heads, one matrix for query, key and value."""

from typing import Any

from rlhf.models.config import ModelConfig
from rlhf.models.families.family import Family
from rlhf.models.families.hf_config import ACTIVATION_NAMES, HfConfig, rope_to_hf
from rlhf.models.families.layouts import StoredTensor, kept, linear, matrix, norm

LAYER = "gpt_neox.layers.{layer}"


def read(options: HfConfig) -> dict[str, Any]:
    """Arguments of `ModelConfig`."""
    return {
        "vocab_size": options["vocab_size"],
        "width": options["hidden_size"],
        "layers": options["num_hidden_layers"],
        "heads": options["num_attention_heads"],
        "mlp_width": options["intermediate_size"],
        "context": options["max_position_embeddings"],
        "norm": "layer",
        "norm_epsilon": options["layer_norm_eps"],
        "residual": "parallel" if options["use_parallel_residual"] else "sequential",
        "rope": options.rope(partial=True),
        "activation": options.activation("hidden_act"),
        "gated_mlp": False,
        "attention_bias": options["attention_bias"],
        "mlp_bias": True,
        "tied_embeddings": options["tie_word_embeddings"],
        "initializer_std": options["initializer_range"],
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read`."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.context,
        "layer_norm_eps": config.norm_epsilon,
        "use_parallel_residual": config.residual == "parallel",
        "rope_parameters": rope_to_hf(config.rope, partial=True),
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "attention_bias": config.attention_bias,
        "tie_word_embeddings": config.tied_embeddings,
        "initializer_range": config.initializer_std,
        "classifier_dropout": 0.0,
        "use_cache": True,
    }


def tensors(config: ModelConfig) -> list[StoredTensor]:
    """Every tensor of a checkpoint."""
    heads = [f"blocks.attention.{name}" for name in ("query", "key", "value")]
    return [
        kept("gpt_neox.embed_in.weight", "embedding"),
        *norm(f"{LAYER}.input_layernorm", "blocks.attention_norm"),
        *linear(f"{LAYER}.attention.query_key_value", *heads, grouped=True),
        *linear(f"{LAYER}.attention.dense", "blocks.attention.output", input_axes=2),
        *norm(f"{LAYER}.post_attention_layernorm", "blocks.mlp_norm"),
        *linear(f"{LAYER}.mlp.dense_h_to_4h", "blocks.mlp.up"),
        *linear(f"{LAYER}.mlp.dense_4h_to_h", "blocks.mlp.down"),
        *norm("gpt_neox.final_layer_norm", "final_norm"),
        matrix("embed_out.weight", "head_kernel"),
    ]


FAMILY = Family(
    model_type="gpt_neox",
    causal_architecture="GPTNeoXForCausalLM",
    scorer_architecture="GPTNeoXForSequenceClassification",
    read=read,
    write=write,
    tensors=tensors,
    ignored=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
    prefix="gpt_neox.",
    renamed={"lm_head.weight": "embed_out.weight"},
)
