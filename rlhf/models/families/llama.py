"""LLaMA 1 and 2 (2302.13971, 2307.09288) and whatever shares their architecture, as `LlamaForCausalLM` folders."""

from collections.abc import Mapping
from typing import Any

from rlhf.errors import UserError
from rlhf.models.config import ModelConfig, RopeConfig
from rlhf.models.families.family import Family, TensorName

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}
ACTIVATION_NAMES = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}

# Options that change what the network computes, each with the value at which it does nothing.
NEUTRAL_OPTIONS = {"sliding_window": None, "partial_rotary_factor": 1.0, "quantization_config": None}

NAMES = {
    "embedding": TensorName("model.embed_tokens.weight"),
    "final_norm.scale": TensorName("model.norm.weight"),
    "head_kernel": TensorName("lm_head.weight", input_axes=1),
    "blocks.attention_norm.scale": TensorName("model.layers.{layer}.input_layernorm.weight"),
    "blocks.attention.query.kernel": TensorName("model.layers.{layer}.self_attn.q_proj.weight", input_axes=1),
    "blocks.attention.key.kernel": TensorName("model.layers.{layer}.self_attn.k_proj.weight", input_axes=1),
    "blocks.attention.value.kernel": TensorName("model.layers.{layer}.self_attn.v_proj.weight", input_axes=1),
    "blocks.attention.output.kernel": TensorName("model.layers.{layer}.self_attn.o_proj.weight", input_axes=2),
    "blocks.attention.query.bias": TensorName("model.layers.{layer}.self_attn.q_proj.bias", input_axes=0),
    "blocks.attention.key.bias": TensorName("model.layers.{layer}.self_attn.k_proj.bias", input_axes=0),
    "blocks.attention.value.bias": TensorName("model.layers.{layer}.self_attn.v_proj.bias", input_axes=0),
    "blocks.attention.output.bias": TensorName("model.layers.{layer}.self_attn.o_proj.bias", input_axes=0),
    "blocks.mlp_norm.scale": TensorName("model.layers.{layer}.post_attention_layernorm.weight"),
    "blocks.mlp.gate.kernel": TensorName("model.layers.{layer}.mlp.gate_proj.weight", input_axes=1),
    "blocks.mlp.up.kernel": TensorName("model.layers.{layer}.mlp.up_proj.weight", input_axes=1),
    "blocks.mlp.down.kernel": TensorName("model.layers.{layer}.mlp.down_proj.weight", input_axes=1),
    "blocks.mlp.gate.bias": TensorName("model.layers.{layer}.mlp.gate_proj.bias", input_axes=0),
    "blocks.mlp.up.bias": TensorName("model.layers.{layer}.mlp.up_proj.bias", input_axes=0),
    "blocks.mlp.down.bias": TensorName("model.layers.{layer}.mlp.down_proj.bias", input_axes=0),
}


def config_from_hf(raw: Mapping[str, Any], where: str) -> ModelConfig:
    """Reads a LLaMA config.json.

    Args:
        raw: its contents.
        where: the file, for messages.

    Raises:
        UserError: a key is missing, or an option is set that the network cannot compute.
    """
    for option, neutral in NEUTRAL_OPTIONS.items():
        if raw.get(option, neutral) not in (neutral, None):
            raise UserError(
                f"{where}: {option} = {raw[option]!r} is not supported; supported: {neutral!r}",
                fix="choose a checkpoint without it.",
            )
    try:
        width, heads = raw["hidden_size"], raw["num_attention_heads"]
        head_dim, kv_heads = raw.get("head_dim"), raw.get("num_key_value_heads")
        return ModelConfig(
            vocab_size=raw["vocab_size"],
            width=width,
            layers=raw["num_hidden_layers"],
            heads=heads,
            kv_heads=None if kv_heads == heads else kv_heads,
            head_dim=None if head_dim is not None and head_dim * heads == width else head_dim,
            mlp_width=raw["intermediate_size"],
            context=raw.get("max_position_embeddings", 2048),
            norm="rms",
            norm_epsilon=raw.get("rms_norm_eps", 1e-6),
            position="rope",
            rope=RopeConfig(theta=_rope_theta(raw, where)),
            activation=_activation(raw.get("hidden_act", "silu"), where),
            gated_mlp=True,
            attention_bias=raw.get("attention_bias", False),
            mlp_bias=raw.get("mlp_bias", False),
            tied_embeddings=raw.get("tie_word_embeddings", False),
            initializer_std=raw.get("initializer_range", 0.02),
        )
    except KeyError as missing:
        raise UserError(
            f"{where}: the key {missing} is missing", fix="check that this is the config.json of a LLaMA model."
        ) from None


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """Writes a LLaMA config.json, as transformers 5 reads it."""
    return {
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_epsilon,
        "rope_parameters": {"rope_theta": config.rope.theta, "rope_type": "default"},
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "attention_bias": config.attention_bias,
        "attention_dropout": 0.0,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tied_embeddings,
        "initializer_range": config.initializer_std,
        "use_cache": True,
    }


def cannot_express(config: ModelConfig) -> str | None:
    """Why a description is no LLaMA: the first choice that differs."""
    required = {"norm": "rms", "position": "rope", "gated_mlp": True}
    for choice, value in required.items():
        if getattr(config, choice) != value:
            return f"{choice} = {getattr(config, choice)!r} (LLaMA: {value!r})"
    return None


def _rope_theta(raw: Mapping[str, Any], where: str) -> float:
    # transformers 5 writes rope_parameters, which holds theta; before, rope_theta stood alone and rope_scaling beside it.
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        raise UserError(
            f"{where}: rotary scaling of type {kind!r} is not supported; supported: 'default'",
            fix="choose a checkpoint without rope scaling.",
        )
    return float(parameters.get("rope_theta", raw.get("rope_theta", 10000.0)))


def _activation(name: str, where: str) -> str:
    if name not in ACTIVATIONS:
        raise UserError(
            f"{where}: hidden_act = {name!r} is not supported; supported: {', '.join(ACTIVATIONS)}",
            fix="choose a checkpoint with one of these.",
        )
    return ACTIVATIONS[name]


FAMILY = Family(
    model_type="llama",
    causal_architecture="LlamaForCausalLM",
    scorer_architecture="LlamaForSequenceClassification",
    config_from_hf=config_from_hf,
    config_to_hf=config_to_hf,
    cannot_express=cannot_express,
    names=NAMES,
    head=TensorName("score.weight", input_axes=1),
    ignored=("rotary_emb.inv_freq",),
)
