from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf.training.adam import clip_by_global_norm, scale_by_adam
from rlhf.training.optimizer import OptimizerConfig, make_optimizer
from rlhf.training.state import TrainState
from rlhf.training.step import apply_gradients


def drawn(seed: int, scale: float = 1.0) -> dict:
    random = np.random.default_rng(seed)
    return {name: jnp.asarray(scale * random.normal(size=(5, 3)), jnp.float32) for name in "ab"}


def test_directions_and_moments_are_those_of_optax():
    ours, reference = scale_by_adam(0.9, 0.95, 1e-6), optax.scale_by_adam(0.9, 0.95, 1e-6)
    state, expected_state = ours.init(drawn(0)), reference.init(drawn(0))
    for step in range(4):
        direction, state = jax.jit(ours.update)(drawn(step), state)
        expected, expected_state = jax.jit(reference.update)(drawn(step), expected_state)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), direction, expected)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), tuple(state), tuple(expected_state))


def test_a_refused_update_keeps_every_bit_of_the_moments():
    adam = scale_by_adam(0.9, 0.95, 1e-6)
    _, before = adam.update(drawn(0), adam.init(drawn(0)))
    spoilt = jax.tree.map(lambda leaf: leaf * jnp.nan, drawn(1))
    _, after = jax.jit(adam.update)(spoilt, before, accept=jnp.array(False))
    jax.tree.map(np.testing.assert_array_equal, after, before)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_clipping_is_that_of_optax(scale):
    gradients = drawn(3, scale)
    clipped, _ = clip_by_global_norm(1.0).update(gradients, optax.EmptyState())
    expected, _ = optax.clip_by_global_norm(1.0).update(gradients, optax.EmptyState())
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), clipped, expected)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about the CPU's compiler")
def test_an_update_needs_no_copy_of_parameters_or_moments():
    """Each would be one times the parameters' size in temporaries; optax's own adamw takes two."""
    parameters = {"kernel": jnp.ones((512, 512))}
    optimizer = make_optimizer(OptimizerConfig(), 10)
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero, parameters, None, optimizer.init(parameters), zero)
    update = jax.jit(lambda state, gradients: apply_gradients(state, gradients, zero, optimizer), donate_argnums=0)
    needed = update.lower(state, parameters).compile().memory_analysis().temp_size_in_bytes
    assert needed < 0.1 * parameters["kernel"].nbytes
