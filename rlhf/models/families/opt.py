"""OPT (2205.01068): learned positions from row 2 on; the 350m model normalises after each part and projects its embeddings."""

from typing import Any

from rlhf.models.config import ModelConfig
from rlhf.models.families.family import Family
from rlhf.models.families.hf_config import ACTIVATION_NAMES, HfConfig
from rlhf.models.families.layouts import StoredTensor, kept, linear, matrix, norm

DECODER = "model.decoder"
LAYER = f"{DECODER}.layers.{{layer}}"


def read(options: HfConfig) -> dict[str, Any]:
    """Arguments of `ModelConfig`."""
    options.require_neutral(layer_norm_elementwise_affine=True)
    width, embedding_width = options["hidden_size"], options["word_embed_proj_dim"]
    before = options["do_layer_norm_before"]
    removed = options["_remove_final_layer_norm"]
    return {
        "vocab_size": options["vocab_size"],
        "width": width,
        "layers": options["num_hidden_layers"],
        "heads": options["num_attention_heads"],
        "mlp_width": options["ffn_dim"],
        "context": options["max_position_embeddings"],
        "norm": "layer",
        "norm_placement": "before" if before else "after",
        "final_norm": before and not removed,
        "position": "learned",
        "position_offset": 2,
        "activation": options.activation("activation_function"),
        "gated_mlp": False,
        "attention_bias": options["enable_bias"],
        "mlp_bias": options["enable_bias"],
        "tied_embeddings": options["tie_word_embeddings"],
        "embedding_width": None if embedding_width == width else embedding_width,
        "initializer_std": options["init_std"],
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read`."""
    before = config.norm_placement == "before"
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "ffn_dim": config.mlp_width,
        "max_position_embeddings": config.context,
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and not config.final_norm,
        "activation_function": ACTIVATION_NAMES[config.activation],
        "enable_bias": config.attention_bias,
        "tie_word_embeddings": config.tied_embeddings,
        "word_embed_proj_dim": config.embedding_size,
        "init_std": config.initializer_std,
        "dropout": 0.0,
        "use_cache": True,
    }


def tensors(config: ModelConfig) -> list[StoredTensor]:
    """Every tensor of a checkpoint."""
    attention = f"{LAYER}.self_attn"
    return [
        kept(f"{DECODER}.embed_tokens.weight", "embedding"),
        kept(f"{DECODER}.embed_positions.weight", "position_embedding"),
        matrix(f"{DECODER}.project_in.weight", "embedding_in.kernel"),
        *norm(f"{LAYER}.self_attn_layer_norm", "blocks.attention_norm"),
        *linear(f"{attention}.q_proj", "blocks.attention.query"),
        *linear(f"{attention}.k_proj", "blocks.attention.key"),
        *linear(f"{attention}.v_proj", "blocks.attention.value"),
        *linear(f"{attention}.out_proj", "blocks.attention.output", input_axes=2),
        *norm(f"{LAYER}.final_layer_norm", "blocks.mlp_norm"),
        *linear(f"{LAYER}.fc1", "blocks.mlp.up"),
        *linear(f"{LAYER}.fc2", "blocks.mlp.down"),
        *norm(f"{DECODER}.final_layer_norm", "final_norm"),
        matrix(f"{DECODER}.project_out.weight", "embedding_out.kernel"),
        matrix("lm_head.weight", "head_kernel"),
    ]


FAMILY = Family(
    model_type="opt",
    causal_architecture="OPTForCausalLM",
    scorer_architecture="OPTForSequenceClassification",
    read=read,
    write=write,
    tensors=tensors,
)
