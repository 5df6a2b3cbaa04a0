"""The number of parameters of published models, from the options that they were published with."""

import math

import jax
import pytest
from flax import nnx

from rlhf.models.families import family_of
from rlhf.models.transformer import Transformer

pytest.importorskip("transformers")

PUBLISHED = {
    "OPT-1.3B": (1_315_758_080, {
        "model_type": "opt", "vocab_size": 50272, "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32,
        "ffn_dim": 8192, "max_position_embeddings": 2048, "word_embed_proj_dim": 2048, "do_layer_norm_before": True,
        "activation_function": "relu", "init_std": 0.02, "dropout": 0.1, "layerdrop": 0.0, "prefix": "</s>",
        "_remove_final_layer_norm": False, "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1,
    }),
    "LLaMA-2-7B": (6_738_415_616, {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "intermediate_size": 11008, "max_position_embeddings": 4096, "hidden_act": "silu",
        "rms_norm_eps": 1e-05, "rope_scaling": None, "pretraining_tp": 1, "tie_word_embeddings": False,
    }),
    "Pythia-1.4B": (1_414_647_808, {
        "model_type": "gpt_neox", "vocab_size": 50304, "hidden_size": 2048, "num_hidden_layers": 24,
        "num_attention_heads": 16, "intermediate_size": 8192, "max_position_embeddings": 2048, "hidden_act": "gelu",
        "layer_norm_eps": 1e-05, "rotary_emb_base": 10000, "rotary_pct": 0.25, "use_parallel_residual": True,
        "tie_word_embeddings": False, "initializer_range": 0.02,
    }),
    "BLOOM-1b1": (1_065_314_304, {
        "model_type": "bloom", "vocab_size": 250880, "hidden_size": 1536, "n_layer": 24, "n_head": 16, "seq_length": 2048,
        "apply_residual_connection_post_layernorm": False, "layer_norm_epsilon": 1e-05, "pretraining_tp": 1,
        "slow_but_exact": False, "unk_token_id": 0, "skip_bias_add": True, "skip_bias_add_qkv": False,
        "attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "masked_softmax_fusion": True,
    }),
    "Falcon-7b": (6_921_720_704, {
        "model_type": "falcon", "vocab_size": 65024, "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71,
        "num_kv_heads": 71, "alibi": False, "bias": False, "multi_query": True, "new_decoder_architecture": False,
        "parallel_attn": True, "layer_norm_epsilon": 1e-05,
    }),
}  # fmt: skip


@pytest.mark.parametrize(("published", "options"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_the_number_of_parameters_is_the_published_one(published, options, caplog):
    config = family_of(options["model_type"], "").config_from_hf(options, "")
    assert not caplog.records  # nothing was passed over
    abstract = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    sizes = [math.prod(array.shape) for array in jax.tree.leaves(nnx.state(abstract, nnx.Param))]
    assert sum(sizes) == published
