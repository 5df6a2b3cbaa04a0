"""GPT-2: learned positions, layer norms, and matrices kept as [inputs, outputs]."""

from typing import Any

from rlhf.models.config import AttentionConfig, ModelConfig
from rlhf.models.families.family import Family
from rlhf.models.families.hf_config import ACTIVATION_NAMES, HfConfig
from rlhf.models.families.layouts import StoredTensor, kept, linear, matrix, norm

LAYER = "transformer.h.{layer}"


def read(options: HfConfig) -> dict[str, Any]:
    """Arguments of `ModelConfig`."""
    options.require_neutral(scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    width, inner = options["n_embd"], options["n_inner"]
    return {
        "vocab_size": options["vocab_size"],
        "width": width,
        "layers": options["n_layer"],
        "heads": options["n_head"],
        "mlp_width": 4 * width if inner is None else inner,
        "context": options["n_positions"],
        "norm": "layer",
        "norm_epsilon": options["layer_norm_epsilon"],
        "position": "learned",
        "activation": options.activation("activation_function"),
        "gated_mlp": False,
        "attention_bias": True,
        "mlp_bias": True,
        "attention": AttentionConfig(scale=None if options["scale_attn_weights"] else 1.0),
        "tied_embeddings": options["tie_word_embeddings"],
        "initializer_std": options["initializer_range"],
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read`."""
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.mlp_width,
        "n_positions": config.context,
        "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": ACTIVATION_NAMES[config.activation],
        "scale_attn_weights": config.attention.scale != 1.0,
        "tie_word_embeddings": config.tied_embeddings,
        "initializer_range": config.initializer_std,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "use_cache": True,
    }


def tensors(config: ModelConfig) -> list[StoredTensor]:
    """Every tensor of a checkpoint."""
    heads = [f"blocks.attention.{name}" for name in ("query", "key", "value")]
    return [
        kept("transformer.wte.weight", "embedding"),
        kept("transformer.wpe.weight", "position_embedding"),
        *norm(f"{LAYER}.ln_1", "blocks.attention_norm"),
        *linear(f"{LAYER}.attn.c_attn", *heads, transposed=False),
        *linear(f"{LAYER}.attn.c_proj", "blocks.attention.output", input_axes=2, transposed=False),
        *norm(f"{LAYER}.ln_2", "blocks.mlp_norm"),
        *linear(f"{LAYER}.mlp.c_fc", "blocks.mlp.up", transposed=False),
        *linear(f"{LAYER}.mlp.c_proj", "blocks.mlp.down", transposed=False),
        *norm("transformer.ln_f", "final_norm"),
        matrix("lm_head.weight", "head_kernel"),
    ]


FAMILY = Family(
    model_type="gpt2",
    causal_architecture="GPT2LMHeadModel",
    scorer_architecture="GPT2ForSequenceClassification",
    read=read,
    write=write,
    tensors=tensors,
    inert=(
        "reorder_and_upcast_attn",  # attention scores are float32 here in any case
        *(f"summary_{name}" for name in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")),
    ),
    ignored=(".attn.bias", ".attn.masked_bias"),
    prefix="transformer.",
)
