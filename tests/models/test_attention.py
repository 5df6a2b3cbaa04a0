import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rlhf.models.attention import attend
from rlhf.models.cache import KVCache
from rlhf.models.config import AttentionConfig


def draw(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def test_grouped_heads_equal_repeated_keys():
    queries, keys, values = draw(2, 5, 2, 3, 4), draw(2, 2, 6, 4, seed=1), draw(2, 2, 6, 4, seed=2)
    mask = jax.random.bernoulli(jax.random.key(3), 0.6, (2, 5, 6)).at[:, :, 0].set(True)
    found = attend(queries, keys, values, mask)
    expected = jax.nn.dot_product_attention(
        queries.reshape(2, 5, 6, 4),
        jnp.repeat(keys, 3, axis=1).swapaxes(1, 2),
        jnp.repeat(values, 3, axis=1).swapaxes(1, 2),
        mask=mask[:, None],
    )
    np.testing.assert_allclose(found.reshape(2, 5, 6, 4), expected, rtol=1e-5, atol=1e-5)


def test_a_query_that_may_look_nowhere_is_finite_and_so_is_its_gradient():
    queries, keys, values = draw(1, 2, 1, 1, 4), draw(1, 1, 3, 4, seed=1), draw(1, 1, 3, 4, seed=2)
    mask = jnp.array([[[False, False, False], [True, False, False]]])
    mixed, gradients = jax.value_and_grad(lambda *inputs: attend(*inputs, mask).sum(), argnums=(0, 1, 2))(
        queries, keys, values
    )
    assert np.isfinite(mixed)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_softmax_is_float32_when_the_inputs_are_not():
    # 256 equal scores: in bfloat16 the weights' sum would stop growing long before it reaches 1.
    queries, keys = jnp.zeros((1, 1, 1, 1, 2), jnp.bfloat16), jnp.zeros((1, 1, 256, 2), jnp.bfloat16)
    values = jnp.ones((1, 1, 256, 2), jnp.bfloat16)
    mixed = attend(queries, keys, values, jnp.ones((1, 1, 256), bool))
    assert mixed.dtype == jnp.bfloat16
    np.testing.assert_allclose(mixed.astype(jnp.float32), 1.0, atol=1e-2)


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
