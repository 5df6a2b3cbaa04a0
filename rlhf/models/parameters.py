"""Drawing parameters, each with the logical names of its axes.

The names say what an axis means ("embed", "heads", "mlp" …), never on which devices it lies: `rlhf.parallel.rules` decides
that. They are kept in the variable's metadata under `axes`, a name that flax gives no meaning of its own.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

Module = TypeVar("Module", bound=nnx.Module)


def normal(
    rngs: nnx.Rngs, shape: tuple[int, ...], *, std: float, dtype: DTypeLike, axes: tuple[str | None, ...]
) -> nnx.Param:
    """A parameter drawn from a normal distribution of mean 0, in float32 before it is rounded to `dtype`."""
    return nnx.Param((std * jax.random.normal(rngs.params(), shape, jnp.float32)).astype(dtype), axes=axes)


def zeros(shape: tuple[int, ...], *, dtype: DTypeLike, axes: tuple[str | None, ...]) -> nnx.Param:
    """A parameter that starts at 0."""
    return nnx.Param(jnp.zeros(shape, dtype), axes=axes)


def ones(shape: tuple[int, ...], *, dtype: DTypeLike, axes: tuple[str | None, ...]) -> nnx.Param:
    """A parameter that starts at 1."""
    return nnx.Param(jnp.ones(shape, dtype), axes=axes)


def stack(make: Callable[[nnx.Rngs], Module], size: int, rngs: nnx.Rngs) -> Module:
    """Makes `size` equal modules, each with its own draw, as one module whose parameters have a leading `layers` axis.

    The result is a container: split it, scan over its state, and merge each slice with its graph definition to get a
    module that can be called.
    """
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    keys = jax.random.split(rngs.params(), size)
    state = jax.vmap(lambda key: nnx.state(make(nnx.Rngs(params=key))))(keys)
    stacked = nnx.merge(graphdef, state)
    for _, variable in nnx.to_flat_state(nnx.state(stacked)):
        variable.set_metadata(axes=("layers", *variable.axes))
    return stacked
