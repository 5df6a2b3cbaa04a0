"""LLaMA 1 to 3 (2302.13971, 2307.09288, 2407.21783), as `LlamaForCausalLM`; the other families with its layout build on it."""

from typing import Any

from rlhf.models.config import AttentionConfig, ModelConfig
from rlhf.models.families.family import Family
from rlhf.models.families.hf_config import ACTIVATION_NAMES, HfConfig, rope_to_hf
from rlhf.models.families.layouts import StoredTensor, kept, linear, matrix, norm

LAYER = "model.layers.{layer}"


def read_sizes(options: HfConfig) -> dict[str, Any]:
    """What is called the same in every family with LLaMA's names."""
    heads, kv_heads = options["num_attention_heads"], options["num_key_value_heads"]
    return {
        "vocab_size": options["vocab_size"],
        "width": options["hidden_size"],
        "layers": options["num_hidden_layers"],
        "heads": heads,
        "kv_heads": None if kv_heads == heads else kv_heads,
        "mlp_width": options["intermediate_size"],
        "context": options["max_position_embeddings"],
        "tied_embeddings": options["tie_word_embeddings"],
        "initializer_std": options["initializer_range"],
    }


def write_sizes(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_sizes`."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.context,
        "tie_word_embeddings": config.tied_embeddings,
        "initializer_range": config.initializer_std,
        "attention_dropout": 0.0,
        "use_cache": True,
    }


def read_head_dim(options: HfConfig) -> int | None:
    """Size of a head, where it is not width / heads."""
    head_dim = options["head_dim"]
    usual = head_dim is None or head_dim * options["num_attention_heads"] == options["hidden_size"]
    return None if usual else head_dim


def read_window(options: HfConfig) -> AttentionConfig:
    """Which layers have an attention window, by `layer_types`."""
    windowed = tuple(kind == "sliding_attention" for kind in options["layer_types"])
    if other := set(options["layer_types"]) - {"sliding_attention", "full_attention"}:
        raise options.unsupported("layer_types", sorted(other), ["full_attention", "sliding_attention"])
    window = options["sliding_window"]
    if not any(windowed) or window is None:
        return AttentionConfig()
    return AttentionConfig(window=window, window_layers=None if all(windowed) else windowed)


def write_layer_types(config: ModelConfig) -> list[str]:
    """The inverse of `read_window`."""
    return ["sliding_attention" if kind.windowed else "full_attention" for kind in config.layer_kinds]


def read(options: HfConfig) -> dict[str, Any]:
    """Arguments of `ModelConfig`."""
    return read_sizes(options) | {
        "head_dim": read_head_dim(options),
        "norm_epsilon": options["rms_norm_eps"],
        "rope": options.rope(),
        "activation": options.activation("hidden_act"),
        "attention_bias": options["attention_bias"],
        "mlp_bias": options["mlp_bias"],
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read`."""
    return write_sizes(config) | {
        "head_dim": config.head_size,
        "rms_norm_eps": config.norm_epsilon,
        "rope_parameters": rope_to_hf(config.rope),
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
    }


def attention_tensors() -> list[StoredTensor]:
    """Attention as LLaMA and its kin call it."""
    attention = f"{LAYER}.self_attn"
    return [
        *linear(f"{attention}.q_proj", "blocks.attention.query"),
        *linear(f"{attention}.k_proj", "blocks.attention.key"),
        *linear(f"{attention}.v_proj", "blocks.attention.value"),
        *linear(f"{attention}.o_proj", "blocks.attention.output", input_axes=2),
        *norm(f"{attention}.q_norm", "blocks.attention.query_norm"),
        *norm(f"{attention}.k_norm", "blocks.attention.key_norm"),
    ]


def mlp_tensors() -> list[StoredTensor]:
    """The gated feed-forward part."""
    return [
        *linear(f"{LAYER}.mlp.gate_proj", "blocks.mlp.gate"),
        *linear(f"{LAYER}.mlp.up_proj", "blocks.mlp.up"),
        *linear(f"{LAYER}.mlp.down_proj", "blocks.mlp.down"),
    ]


def outer_tensors() -> list[StoredTensor]:
    """What stands before and after the blocks."""
    return [
        kept("model.embed_tokens.weight", "embedding"),
        *norm("model.norm", "final_norm"),
        matrix("lm_head.weight", "head_kernel"),
    ]


def tensors(config: ModelConfig) -> list[StoredTensor]:
    """Every tensor of a checkpoint."""
    return [
        *outer_tensors(),
        *norm(f"{LAYER}.input_layernorm", "blocks.attention_norm"),
        *attention_tensors(),
        *norm(f"{LAYER}.post_attention_layernorm", "blocks.mlp_norm"),
        *mlp_tensors(),
    ]


FAMILY = Family(
    model_type="llama",
    causal_architecture="LlamaForCausalLM",
    scorer_architecture="LlamaForSequenceClassification",
    read=read,
    write=write,
    tensors=tensors,
    ignored=("rotary_emb.inv_freq",),
)
