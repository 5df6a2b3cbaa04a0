"""Calls of attention with packed rows, and how two implementations of them are compared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf.models.kernels.call import AttentionCall
from rlhf.models.softmax_attention import attend


def draw(seed: int, *shape: int):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.fixture(scope="session")
def make_call():
    """Makes a call: two sequences and padding a row, two heads a key head, unless it is told otherwise."""

    def make(time: int = 16, head_dim: int = 8, *, kv_heads: int = 2, window=None, soft_cap=None) -> AttentionCall:
        batch, group = 2, 2
        columns = jnp.arange(time)
        ends = jnp.array([[time // 3, time - 3], [time // 2, time]])
        segment_ids = (columns < ends[:, 1:]).astype(jnp.int32) * (1 + (columns >= ends[:, :1]))
        offsets = columns[None, :] - columns[:, None]
        mask = (segment_ids[:, :, None] == segment_ids[:, None, :]) & (offsets <= 0)
        if window is not None:
            mask &= offsets > -window
        keys, values = (draw(seed, batch, kv_heads, time, head_dim) for seed in (1, 2))
        queries = draw(0, batch, time, kv_heads, group, head_dim)
        return AttentionCall(queries, keys, values, mask, segment_ids, window, head_dim**-0.5, soft_cap)

    return make


@pytest.fixture(scope="session")
def plain():
    """The plain formula."""
    return lambda call: attend(
        call.queries, call.keys, call.values, call.mask, scale=call.scale, soft_cap=call.soft_cap
    )


@pytest.fixture(scope="session")
def assert_agree():
    """Compares what two implementations make of a call, and of its gradient."""

    def outcome(implementation, call: AttentionCall, mesh):
        target = draw(3, *call.queries.shape) * (call.segment_ids > 0)[:, :, None, None, None]

        def objective(queries, keys, values):
            arguments = (queries, keys, values, call.mask, call.segment_ids, call.window, call.scale, call.soft_cap)
            mixed = implementation(AttentionCall(*arguments))
            return jnp.sum(mixed * target), mixed * (target != 0)

        program = jax.jit(jax.value_and_grad(objective, argnums=(0, 1, 2), has_aux=True))
        if mesh is None:
            return program(call.queries, call.keys, call.values)
        with jax.set_mesh(mesh):
            return program(call.queries, call.keys, call.values)

    def assert_agree(one, other, call: AttentionCall, mesh=None, tolerance: float = 1e-5):
        found, expected = outcome(one, call, mesh), outcome(other, call, None)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)

    return assert_agree
