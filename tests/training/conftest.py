"""A tiny problem: least squares with weighted rows, cheap to compile and sensitive to every bit."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

ROWS, WIDTH = 8, 5


class Regression(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, param_dtype=jnp.float32):
        self.linear = nnx.Linear(WIDTH, 1, rngs=rngs, param_dtype=param_dtype)
        self.stack = nnx.Param(jnp.ones((2, WIDTH), param_dtype), axes=("layers", "embed"))
        self.offset = nnx.Variable(jnp.full((), 0.5))

    def __call__(self, x):
        return self.linear(x * self.stack[0] * self.stack[1])[:, 0] + self.offset[...]


def squared_error(model, batch):
    error = jnp.square(model(batch["x"]) - batch["y"]).astype(jnp.float32)
    weight = batch["weight"].sum()
    return (error * batch["weight"]).sum(), weight, {"abs_error": ((jnp.sqrt(error) * batch["weight"]).sum(), weight)}


def batch_at(step: int, seed: int = 0):
    """The batch of a step: rows of very unequal weight, as sequences of unequal length have."""
    random = np.random.default_rng([seed, step])
    x = random.normal(size=(ROWS, WIDTH)).astype(np.float32)
    y = (x.sum(axis=1) + 0.1 * random.normal(size=ROWS)).astype(np.float32)
    return {"x": x, "y": y, "weight": random.integers(0, 9, size=ROWS).astype(np.float32)}


def batches_from(start: int):
    step = start
    while True:
        yield batch_at(step)
        step += 1


def held_out():
    return [batch_at(step, seed=1) for step in range(3)]


@pytest.fixture
def tiny():
    return SimpleNamespace(
        make_model=lambda seed=0, **options: Regression(nnx.Rngs(seed), **options),
        loss=squared_error,
        batch_at=batch_at,
        batches_from=batches_from,
        held_out=held_out,
        bits=lambda tree: [(str(leaf.dtype), np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(tree)],
    )
