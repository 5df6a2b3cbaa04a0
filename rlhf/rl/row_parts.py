"""Working through the rows of a rollout in parts, so that only some of them are in memory at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rlhf.training.step import split_micro_batches


def map_rows(function: Callable[..., Any], parts: int, *arrays: Array | None) -> Any:
    """Applies a function to parts of the rows, one after the other.

    Args:
        function: (*arrays) → pytree of arrays, row by row: each row of its results depends on the same row of its arguments only.
        parts: how many; a part takes every row whose number is the part's modulo their count, as micro-batches do, so that each
            device of a mesh works through its own rows. 1 calls the function once.
        *arrays: [rows, ...] each, or None.

    Returns:
        What the function gives for all rows at once.
    """
    if parts == 1:
        return function(*arrays)
    results = jax.lax.map(lambda part: function(*part), split_micro_batches(arrays, parts))
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[2:]), results)
