"""One small model of transformers a family, with all the choices of a real one, and the same model read here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf.models.hub import load_transformer
from rlhf.models.transformer import Transformer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCABULARY = 64
PAD = 1

LLAMA_SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 40, "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip
NEOX_SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "initializer_range": 0.2,
}  # fmt: skip
OPT_SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 40,
    "max_position_embeddings": 64, "init_std": 0.2, "dropout": 0.0,
}  # fmt: skip
ROPE_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip

# Name of the variant: (model_type, options). Only width, depth, vocabulary and context are smaller than in published models,
# and windows, so that they cut.
VARIANTS = {
    "gpt2": ("gpt2", {
        "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2,
        "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
    }),
    "opt": ("opt", OPT_SIZES),
    "opt-350m": ("opt", OPT_SIZES | {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "pythia": ("gpt_neox", NEOX_SIZES | {
        "intermediate_size": 40, "max_position_embeddings": 64, "rotary_pct": 0.25, "hidden_act": "gelu",
        "use_parallel_residual": True, "tie_word_embeddings": False,
    }),
    "pythia, sequential": ("gpt_neox", NEOX_SIZES | {
        "intermediate_size": 40, "max_position_embeddings": 64, "use_parallel_residual": False, "rotary_pct": 0.5,
    }),
    "bloom": ("bloom", NEOX_SIZES),
    "bloom, 6 heads": ("bloom", NEOX_SIZES | {"hidden_size": 48, "num_attention_heads": 6}),
    "falcon-7b": ("falcon", NEOX_SIZES | {
        "multi_query": True, "parallel_attn": True, "new_decoder_architecture": False, "bias": False, "alibi": False,
    }),
    "falcon-40b": ("falcon", NEOX_SIZES | {"num_kv_heads": 2, "new_decoder_architecture": True, "bias": False}),
    "falcon2-11b": ("falcon", NEOX_SIZES | {
        "num_kv_heads": 2, "new_decoder_architecture": True, "num_ln_in_parallel_attn": 1,
    }),
    "falcon-rw": ("falcon", NEOX_SIZES | {"multi_query": False, "parallel_attn": False, "bias": True, "alibi": True}),
    "llama2": ("llama", LLAMA_SIZES | {"num_key_value_heads": 4}),
    "llama3.1": ("llama", LLAMA_SIZES | {"rope_parameters": ROPE_LLAMA3}),
    "llama, linear scaling": ("llama", LLAMA_SIZES | {
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}, "attention_bias": True,
        "mlp_bias": True, "head_dim": 16,
    }),
    "mistral": ("mistral", LLAMA_SIZES | {"sliding_window": 5}),
    "qwen2.5": ("qwen2", LLAMA_SIZES | {"rope_theta": 1e6}),
    "qwen2, window": ("qwen2", LLAMA_SIZES | {
        "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1, "tie_word_embeddings": True,
    }),
    "qwen3": ("qwen3", LLAMA_SIZES | {"head_dim": 12, "tie_word_embeddings": True}),
    "gemma": ("gemma", LLAMA_SIZES | {"head_dim": 16, "num_key_value_heads": 1}),
    "gemma2": ("gemma2", LLAMA_SIZES | {
        "head_dim": 16, "sliding_window": 4, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    }),
    "gemma3": ("gemma3_text", LLAMA_SIZES | {
        "num_hidden_layers": 3, "head_dim": 16, "sliding_window": 4, "sliding_window_pattern": 3, "query_pre_attn_scalar": 16,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    }),
    "olmo2": ("olmo2", LLAMA_SIZES),
    "stablelm": ("stablelm", LLAMA_SIZES | {"use_qkv_bias": True, "rope_parameters": {
        "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25,
    }}),
    "stablelm, parallel": ("stablelm", LLAMA_SIZES | {"use_parallel_residual": True}),
    "smollm3": ("smollm3", LLAMA_SIZES | {"num_hidden_layers": 4, "pad_token_id": PAD}),
    "phi3": ("phi3", LLAMA_SIZES | {"sliding_window": 5, "pad_token_id": PAD, "embd_pdrop": 0.0, "resid_pdrop": 0.0}),
}  # fmt: skip


class Pair:
    """A model of transformers, and the same read from the folder that it saved.

    Attributes:
        theirs: the model of transformers.
        folder: what it saved.
        ours: the same, read by this package.
        attention: which of their ways to compute attention is the right one.
    """

    def __init__(self, theirs, folder, attention):
        self.theirs, self.folder, self.attention = theirs, folder, attention
        self.ours: Transformer = load_transformer(folder)
        self.definition, self.state = nnx.split(self.ours)
        self._logits = jax.jit(self._compute_logits)

    def _compute_logits(self, state, tokens, segments):
        model = nnx.merge(self.definition, state)
        return model.logits(model(tokens, segments))

    def logits(self, tokens, segments, state=None) -> np.ndarray:
        """Our logits."""
        return np.asarray(
            self._logits(self.state if state is None else state, jnp.asarray(tokens), jnp.asarray(segments))
        )

    def their_logits(self, tokens, segments) -> np.ndarray:
        """Theirs, told the positions where their model takes them (ALiBi and OPT count by the mask)."""
        with torch.no_grad():
            return self.theirs(**self.their_inputs(tokens, segments)).logits.numpy()

    def their_inputs(self, tokens, segments) -> dict:
        """Arguments of their model."""
        inputs = {"input_ids": torch.tensor(tokens).long(), "attention_mask": torch.tensor(segments).long()}
        if self.theirs.config.model_type not in ("bloom", "opt"):
            inputs["position_ids"] = torch.tensor((np.cumsum(segments, axis=1) - 1).clip(0))
        return inputs


@pytest.fixture(scope="session")
def make_pair(tmp_path_factory):
    """Makes the pair of a variant, once."""

    @functools.cache
    def make(name: str) -> Pair:
        model_type, options = VARIANTS[name]
        torch.manual_seed(0)
        # Without "eager" soft caps are not computed; with it Falcon adds ALiBi twice.
        attention = "sdpa" if model_type == "falcon" else "eager"
        config = transformers.AutoConfig.for_model(model_type, **options, attn_implementation=attention)
        theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter_name, parameter in theirs.named_parameters():
                if parameter.ndim == 1:  # so that a lost bias, or a norm's scale in another's place, shows
                    parameter += 0.1 * torch.randn_like(parameter)
                elif "embed_positions" in parameter_name or "project" in parameter_name:
                    parameter.normal_(std=0.2)
        folder = tmp_path_factory.mktemp("theirs")
        theirs.save_pretrained(folder)
        return Pair(theirs, folder, attention)

    return make


@pytest.fixture(scope="session")
def variants() -> dict:
    """All of them."""
    return VARIANTS


@pytest.fixture(params=VARIANTS, scope="module")
def pair(request, make_pair) -> Pair:
    """Every variant in turn."""
    return make_pair(request.param)


@pytest.fixture(
    params={model_type: name for name, (model_type, _) in reversed(VARIANTS.items())}.values(), scope="module"
)
def first_of_family(request, make_pair) -> Pair:
    """One variant of every family in turn."""
    return make_pair(request.param)
