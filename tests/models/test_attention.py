import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rlhf.models.cache import KVCache
from rlhf.models.config import AttentionConfig


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
