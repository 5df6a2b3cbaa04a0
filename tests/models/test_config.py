import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf.errors import UserError
from rlhf.models.config import AttentionConfig, ModelConfig, RopeConfig
from rlhf.models.transformer import Transformer

# The base has everything that a choice can act on; each choice is then changed alone.
BASE = ModelConfig(
    vocab_size=20, width=16, layers=2, heads=2, mlp_width=12, context=16, initializer_std=0.4, attention_bias=True,
    rope=RopeConfig(theta=50.0, window_theta=20.0, scaling="llama3", factor=4.0, original_context=64),
    attention=AttentionConfig(window=3, window_layers=(True, False)),
)  # fmt: skip
ALIBI = {"position": "alibi"}
CHOICES = {
    "token_count": {"token_count": 15},
    "heads": {"heads": 4},
    "kv_heads": {"kv_heads": 1},
    "head_dim": {"head_dim": 4},
    "norm": {"norm": "layer"},
    "norm_epsilon": {"norm_epsilon": 0.1},
    "norm_placement: after": {"norm_placement": "after"},
    "norm_placement: output": {"norm_placement": "output"},
    "norm_placement: both": {"norm_placement": "both"},
    "norm_scale_from_one": {"norm_scale_from_one": True},
    "final_norm": {"final_norm": False},
    "embedding_norm": {"embedding_norm": True},
    "residual: parallel": {"residual": "parallel"},
    "residual: parallel_one_norm": {"residual": "parallel_one_norm"},
    "position: alibi": ALIBI,
    "position: learned": {"position": "learned"},
    "position: none": {"position": "none"},
    "activation": {"activation": "relu"},
    "gated_mlp": {"gated_mlp": False},
    "attention_bias": {"attention_bias": False},
    "mlp_bias": {"mlp_bias": True},
    "tied_embeddings": {"tied_embeddings": False},
    "embedding_width": {"embedding_width": 10},
    "embedding_scale": {"embedding_scale": 3.0},
    "logit_soft_cap": {"logit_soft_cap": 0.5},
    "rope.theta": {"rope": {"theta": 500.0}},
    "rope.fraction": {"rope": {"fraction": 0.5}},
    "rope.layers": {"rope": {"layers": (True, False)}},
    "rope.window_theta": {"rope": {"window_theta": None}},
    "rope.scaling: none": {"rope": {"scaling": "none"}},
    "rope.scaling: linear": {"rope": {"scaling": "linear"}},
    "rope.factor": {"rope": {"factor": 2.0}},
    "rope.low_frequency_factor": {"rope": {"low_frequency_factor": 3.0}},
    "rope.high_frequency_factor": {"rope": {"high_frequency_factor": 30.0}},
    "rope.original_context": {"rope": {"original_context": 16}},
    "attention.output_bias": {"attention": {"output_bias": False}},
    "attention.query_key_norm: head": {"attention": {"query_key_norm": "head"}},
    "attention.query_key_norm: all_heads": {"attention": {"query_key_norm": "all_heads"}},
    "attention.scale": {"attention": {"scale": 1.0}},
    "attention.soft_cap": {"attention": {"soft_cap": 0.3}},
    "attention.window": {"attention": {"window": 2}},
    "attention.window_layers": {"attention": {"window_layers": None}},
    "attention.scaled_alibi": ALIBI | {"attention": {"scaled_alibi": True}},
    "position_offset": {"position": "learned", "position_offset": 2},
}
# Sizes, and what says something about the model rather than about what it computes.
NO_CHOICES = {"vocab_size", "width", "layers", "mlp_width", "context", "initializer_std", "family"}


def changed(config: ModelConfig, changes: dict) -> ModelConfig:
    nested = {
        name: dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return dataclasses.replace(config, **nested)


def drawn_logits(config: ModelConfig) -> np.ndarray:
    """Logits of a network whose parameters depend on their names and shapes only, not on which others there are."""
    abstract = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    definition, state = nnx.split(abstract)

    def value(path, array):
        random = np.random.default_rng(sum(map(ord, jax.tree_util.keystr(path))))
        return jnp.asarray(random.normal(size=array.shape, scale=0.4), jnp.float32)

    state = jax.tree_util.tree_map_with_path(value, state)
    tokens = jnp.arange(9)[None] + 3

    model = nnx.merge(definition, state)
    with jax.disable_jit():  # many networks, each run once: compiling them takes longest
        return np.asarray(model.logits(model(tokens, jnp.ones_like(tokens))))


@pytest.fixture(scope="module")
def logits_without():
    before: dict[ModelConfig, np.ndarray] = {}

    def of(config: ModelConfig) -> np.ndarray:
        if config not in before:
            before[config] = drawn_logits(config)
        return before[config]

    return of


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_has_an_effect(logits_without, name):
    changes = CHOICES[name]
    without = {"attention.scaled_alibi": ALIBI, "position_offset": {"position": "learned"}}.get(name, {})
    before, after = logits_without(changed(BASE, without)), drawn_logits(changed(BASE, changes))
    assert np.isfinite(after).all()
    assert np.abs(before - after).max() > 1e-3


def test_every_choice_is_tried():
    tried = {name.partition(":")[0] for name in CHOICES}
    top = {field.name for field in dataclasses.fields(ModelConfig)} - {"rope", "attention"}
    rope = {f"rope.{field.name}" for field in dataclasses.fields(RopeConfig)}
    attention = {f"attention.{field.name}" for field in dataclasses.fields(AttentionConfig)}
    assert tried == (top | rope | attention) - NO_CHOICES


def test_lists_from_files_make_the_same_configuration():
    assert AttentionConfig(window=3, window_layers=[True, False]) == BASE.attention
    assert hash(RopeConfig(layers=[True, False])) == hash(RopeConfig(layers=(True, False)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_count": 21}, r"token_count \(21\) is more than vocab_size \(20\)"),
        ({"heads": 3}, r"width \(16\) is not a multiple of heads \(3\)"),
        ({"kv_heads": 3}, r"heads \(2\) is not a multiple of kv_heads \(3\)"),
        ({"rope": {"fraction": 0.4}}, r"3 features of a head are to be rotated"),
        ({"residual": "parallel", "norm_placement": "both"}, r"residual = 'parallel' does not go with .*'both'"),
        ({"rope": {"layers": (True,)}}, r"rope\.layers has 1 entries for 2 layers"),
        ({"attention": {"window": None}}, r"attention\.window_layers is set, but attention\.window is not"),
        ({"attention": {"soft_cap": -1.0}}, r"attention\.soft_cap is -1\.0"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        changed(BASE, changes)
