"""Falcon (2311.16867) in its three forms: multi-query (7b), grouped with two norms (40b, 180b), and ALiBi (falcon-rw).

ALiBi is float32 here; transformers rounds its slopes and products to bfloat16.
"""

from typing import Any

from rlhf.models.config import AttentionConfig, ModelConfig
from rlhf.models.families.family import Family
from rlhf.models.families.hf_config import ACTIVATION_NAMES, HfConfig, rope_to_hf
from rlhf.models.families.layouts import StoredTensor, kept, linear, matrix, norm

LAYER = "transformer.h.{layer}"


def read(options: HfConfig) -> dict[str, Any]:
    """Arguments of `ModelConfig`."""
    grouped, heads = options["new_decoder_architecture"], options["num_attention_heads"]
    if grouped:
        options.require_neutral(parallel_attn=True)
    own_kv_heads, multi_query, alibi = options["num_kv_heads"], options["multi_query"], options["alibi"]
    kv_heads = own_kv_heads if grouped else 1 if multi_query else heads
    return {
        "vocab_size": options["vocab_size"],
        "width": options["hidden_size"],
        "layers": options["num_hidden_layers"],
        "heads": heads,
        "kv_heads": None if kv_heads == heads else kv_heads,
        "mlp_width": options["ffn_hidden_size"],
        "context": options["max_position_embeddings"],
        "norm": "layer",
        "norm_epsilon": options["layer_norm_epsilon"],
        "residual": _residual(options),
        "position": "alibi" if alibi else "rope",
        "rope": options.rope(),
        "activation": options.activation("activation"),
        "gated_mlp": False,
        "attention_bias": options["bias"],
        "mlp_bias": options["bias"],
        "attention": AttentionConfig(scaled_alibi=bool(alibi)),
        "tied_embeddings": options["tie_word_embeddings"],
        "initializer_std": options["initializer_range"],
    }


def _residual(options: HfConfig) -> str:
    norms, grouped = options["num_ln_in_parallel_attn"], options["new_decoder_architecture"]
    if not (options["parallel_attn"] or grouped):
        return "sequential"
    return "parallel" if grouped and norms in (None, 2) else "parallel_one_norm"


def write(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read`."""
    multi_query = config.key_value_heads == 1 and config.residual != "parallel"
    grouped = config.residual == "parallel" or config.key_value_heads not in (1, config.heads)
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_kv_heads": config.key_value_heads,
        "multi_query": multi_query,
        "new_decoder_architecture": grouped,
        "num_ln_in_parallel_attn": (2 if config.residual == "parallel" else 1) if grouped else None,
        "parallel_attn": config.residual != "sequential",
        "ffn_hidden_size": config.mlp_width,
        "max_position_embeddings": config.context,
        "layer_norm_epsilon": config.norm_epsilon,
        "alibi": config.position == "alibi",
        "rope_parameters": rope_to_hf(config.rope),
        "activation": ACTIVATION_NAMES[config.activation],
        "bias": config.attention_bias,
        "tie_word_embeddings": config.tied_embeddings,
        "initializer_range": config.initializer_std,
        "use_cache": True,
    }


def tensors(config: ModelConfig) -> list[StoredTensor]:
    """Every tensor of a checkpoint."""
    heads = [f"blocks.attention.{name}" for name in ("query", "key", "value")]
    two_norms = config.residual == "parallel"
    return [
        kept("transformer.word_embeddings.weight", "embedding"),
        *norm(f"{LAYER}.ln_attn" if two_norms else f"{LAYER}.input_layernorm", "blocks.attention_norm"),
        *linear(f"{LAYER}.self_attention.query_key_value", *heads, grouped=True),
        *linear(f"{LAYER}.self_attention.dense", "blocks.attention.output", input_axes=2),
        *norm(f"{LAYER}.ln_mlp" if two_norms else f"{LAYER}.post_attention_layernorm", "blocks.mlp_norm"),
        *linear(f"{LAYER}.mlp.dense_h_to_4h", "blocks.mlp.up"),
        *linear(f"{LAYER}.mlp.dense_4h_to_h", "blocks.mlp.down"),
        *norm("transformer.ln_f", "final_norm"),
        matrix("lm_head.weight", "head_kernel"),
    ]


FAMILY = Family(
    model_type="falcon",
    causal_architecture="FalconForCausalLM",
    scorer_architecture="FalconForSequenceClassification",
    read=read,
    write=write,
    tensors=tensors,
    prefix="transformer.",
)
