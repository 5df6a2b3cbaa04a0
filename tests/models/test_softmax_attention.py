import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf.models.softmax_attention import attend


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


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 1e-5),
        ({"scale": 0.3, "soft_cap": 1.5}, 1e-5),
        ({"bias": True}, 1e-5),
        ({"soft_cap": 0.7, "bias": True}, 1e-5),
    ],
)
def test_gradients_equal_those_of_the_formula_differentiated_by_jax(options, tolerance):
    queries, keys, values = draw(2, 5, 2, 3, 4), draw(2, 2, 6, 4, seed=1), draw(2, 2, 6, 4, seed=2)
    mask = jax.random.bernoulli(jax.random.key(3), 0.6, (2, 5, 6)).at[:, :, 0].set(True)
    target = draw(2, 5, 2, 3, 4, seed=4)
    options = options | ({"bias": draw(2, 2, 3, 5, 6, seed=5)} if options.get("bias") else {})

    def formula(queries, keys, values, *, scale=0.5, soft_cap=None, bias=0.0):
        scores = jnp.einsum("btkgh,bksh->bkgts", queries, keys) * scale
        scores = scores if soft_cap is None else soft_cap * jnp.tanh(scores / soft_cap)
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores + bias, -jnp.inf), axis=-1)
        return jnp.sum(jnp.einsum("bkgts,bksh->btkgh", weights, values) * target)

    def ours(queries, keys, values, **options):
        return jnp.sum(attend(queries, keys, values, mask, **options) * target)

    expected = jax.value_and_grad(formula, argnums=(0, 1, 2))(queries, keys, values, **options)
    found = jax.value_and_grad(ours, argnums=(0, 1, 2))(queries, keys, values, **options)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def test_the_backward_pass_is_given_no_array_as_large_as_the_scores():
    queries, keys, values = draw(2, 32, 1, 2, 4), draw(2, 1, 32, 4, seed=1), draw(2, 1, 32, 4, seed=2)
    mask = jnp.tri(32, dtype=bool)[None].repeat(2, 0)
    _, backward = jax.vjp(lambda *inputs: attend(*inputs, mask), queries, keys, values)
    assert max(leaf.size for leaf in jax.tree.leaves(backward)) <= mask.size < 2 * 2 * 32 * 32
