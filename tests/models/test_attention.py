import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf.models import softmax_attention
from rlhf.models.adapters.config import AdapterConfig
from rlhf.models.adapters.insert import insert
from rlhf.models.cache import KVCache
from rlhf.models.config import AttentionConfig, ModelConfig
from rlhf.models.transformer import Transformer


def draw(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def test_a_prefix_is_seen_by_every_query_in_whole_rows_and_through_the_cache(make_model, hidden_states):
    window = AttentionConfig(window=2)
    tokens, segments = np.arange(1, 9).reshape(1, 8), np.ones((1, 8), int)
    for choices in ({"position": "alibi"}, {"attention": window}):
        model = nnx.clone(make_model(**choices))
        without = hidden_states(model, tokens, segments)
        model.blocks.attention.prefix = Prefix(model.config)
        found = hidden_states(model, tokens, segments)
        assert (np.abs(found - without).max(axis=-1) > 1e-3).all()
        cache = KVCache.create(model.config, model.compute, 1, 8)
        valid = jnp.ones((1, 8), bool)
        decoded, cache = model.decode(tokens[:, :5], jnp.arange(5)[None], valid[:, :5], cache)
        rest, _ = model.decode(tokens[:, 5:], jnp.arange(5, 8)[None], valid[:, 5:], cache)
        np.testing.assert_allclose(np.concatenate([decoded, rest], axis=1), found, rtol=1e-4, atol=1e-4)


class Prefix(nnx.Module):
    """Three keys and values a layer."""

    def __init__(self, config):
        shape = (config.layers, config.key_value_heads, 3, config.head_size)
        self.keys, self.values = nnx.Param(draw(*shape, seed=4)), nnx.Param(draw(*shape, seed=5))

    def __call__(self):
        return self.keys[...], self.values[...]


@pytest.mark.parametrize("kind", [None, "prefix"])
def test_blocks_of_queries_change_nothing_for_packed_and_padded_rows(kind, monkeypatch):
    config = ModelConfig(vocab_size=32, width=16, layers=2, heads=4, kv_heads=2, mlp_width=24, context=256)
    model = Transformer(config, rngs=nnx.Rngs(0))
    if kind is not None:
        model = insert(model, AdapterConfig(kind=kind, length=3), nnx.Rngs(1))
    tokens = jax.random.randint(jax.random.key(0), (2, 192), 0, 32)
    segments = jnp.stack([jnp.arange(192) // 80 + 1, jnp.where(jnp.arange(192) < 50, 0, 1)])
    in_blocks = model(tokens, segments)
    monkeypatch.setattr(softmax_attention, "MOST_BLOCKS", 1)
    at_once = model(tokens, segments)
    real = segments > 0
    np.testing.assert_allclose(in_blocks[real], at_once[real], rtol=1e-5, atol=1e-5)
