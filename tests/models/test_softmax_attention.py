import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf.models.softmax_attention import attend, attend_in_order
from rlhf.parallel.mesh import MeshConfig, make_mesh
from rlhf.parallel.rules import constrain


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


@pytest.mark.parametrize("time", [64, 130, 200])
@pytest.mark.parametrize("options", [{}, {"scale": 0.3, "soft_cap": 1.5, "bias": True}])
def test_scores_of_later_keys_are_left_out_and_nothing_changes(time, options):
    inputs = draw(2, time, 2, 2, 4), draw(2, 2, time, 4, seed=1), draw(2, 2, time, 4, seed=2)
    segments = jnp.sort(jax.random.randint(jax.random.key(3), (2, time), 0, 3), axis=1)
    mask = jnp.tril(segments[:, :, None] == segments[:, None, :])
    options = options | ({"bias": draw(2, 2, 2, time, time, seed=5)} if options else {})
    target = draw(*inputs[0].shape, seed=4)

    def value_and_gradients(function):
        return jax.value_and_grad(lambda *inputs: jnp.sum(function(*inputs, mask, **options) * target), (0, 1, 2))(
            *inputs
        )

    for one, other in zip(
        jax.tree.leaves(value_and_gradients(attend_in_order)), jax.tree.leaves(value_and_gradients(attend)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_block_of_queries_meets_no_later_key():
    inputs = draw(1, 256, 1, 1, 4), draw(1, 1, 256, 4, seed=1), draw(1, 1, 256, 4, seed=2)
    lowered = jax.jit(attend_in_order).lower(*inputs, jnp.tril(jnp.ones((1, 256, 256), bool))).as_text()
    scores = {tuple(map(int, found)) for found in re.findall(r"-> tensor<1x1x1x(\d+)x(\d+)xf32>", lowered)}
    assert {(64, 64), (64, 128), (64, 192), (64, 256)} <= scores
    assert (256, 256) not in scores


def test_the_backward_pass_is_given_no_array_as_large_as_the_scores():
    queries, keys, values = draw(2, 32, 1, 2, 4), draw(2, 1, 32, 4, seed=1), draw(2, 1, 32, 4, seed=2)
    mask = jnp.tri(32, dtype=bool)[None].repeat(2, 0)
    _, backward = jax.vjp(lambda *inputs: attend(*inputs, mask), queries, keys, values)
    assert max(leaf.size for leaf in jax.tree.leaves(backward)) <= mask.size < 2 * 2 * 32 * 32


@pytest.mark.parametrize("options", [{}, {"soft_cap": 1.5}, {"bias": True, "window": 7}])
def test_a_divided_time_axis_changes_nothing_and_no_device_holds_all_scores(options):
    """Packed rows, shared keys; the gradient, too."""
    batch, time, mesh = 2, 24, make_mesh(MeshConfig(data=1, tensor=2, sequence=4))
    queries, keys, values = draw(batch, time, 2, 3, 4), draw(batch, 2, time, 4, seed=1), draw(batch, 2, time, 4, seed=2)
    columns = jnp.arange(time)
    segments = (columns[None] >= jnp.array([[5], [13]])).astype(jnp.int32)
    offsets = columns[None, :] - columns[:, None]
    mask = (segments[:, :, None] == segments[:, None]) & (offsets <= 0) & (offsets > -options.get("window", time))
    target = draw(batch, time, 2, 3, 4, seed=4)

    def objective(queries, keys, values):
        # Attention makes the bias from positions, so that it lies as its queries do.
        slopes = jnp.arange(1.0, 7.0).reshape(1, 2, 3, 1, 1) / 4
        distances = constrain(jnp.broadcast_to(offsets, (batch, time, time)), ("batch", "time", None))
        bias = slopes * distances[:, None, None].astype(jnp.float32) if options.get("bias") else None
        places = (("batch", "time", "kv_heads", None, None), ("batch", "kv_heads", "time", None))
        queries, keys, values = (constrain(part, places[part.ndim == 4]) for part in (queries, keys, values))
        hidden = constrain(mask, ("batch", "time", None))
        mixed = attend(queries, keys, values, hidden, soft_cap=options.get("soft_cap"), bias=bias)
        return jnp.sum(mixed * target), mixed

    program = jax.jit(jax.value_and_grad(objective, argnums=(0, 1, 2), has_aux=True))
    expected = program(queries, keys, values)
    with jax.set_mesh(mesh):
        compiled = program.lower(queries, keys, values).compile()
        found = compiled(*jax.device_put((queries, keys, values), compiled.input_shardings[0]))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert re.search(r"f32\[[\d,]*6,24\]", compiled.as_text())
    assert not re.search(r"f32\[\d+,[\d,]*24,24\]", compiled.as_text())
