"""A pytree as a flat dict of arrays by path, which is how it lies in a checkpoint, and back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding


def _is_random_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _leaves_by_path(tree: Any) -> dict[str, Any]:
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    if len(leaves) != len(jax.tree.leaves(tree)):
        raise ValueError("two leaves of the tree have the same path; name them apart to save them")
    return leaves


def _plain_array(leaf: Any) -> Any:
    """Random keys as their integers, Python numbers as arrays; arrays and their shapes as they are."""
    if _is_random_key(leaf):
        return jax.eval_shape(jax.random.key_data, leaf) if _is_shape(leaf) else jax.random.key_data(leaf)
    if isinstance(leaf, (bool, int, float)):
        return np.asarray(leaf)
    return leaf


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


def _key_implementation(leaf: Any) -> Any:
    """The random number generator of a key; that of an abstract key can only be asked for while tracing."""
    implementations = []
    jax.eval_shape(lambda key: implementations.append(jax.random.key_impl(key)), leaf)
    return implementations[0]


def arrays_by_path(tree: Any) -> dict[str, Any]:
    """{path: array} of a pytree of arrays, `jax.ShapeDtypeStruct`s, Python numbers and typed random keys.

    Raises:
        ValueError: two leaves have the same path.
    """
    return {path: _plain_array(leaf) for path, leaf in _leaves_by_path(tree).items()}


def describe_arrays(arrays: dict[str, Any]) -> dict[str, str]:
    """{path: "dtype[shape]"}."""
    return {path: f"{array.dtype}{list(array.shape)}" for path, array in arrays.items()}


def restore_targets(example: Any) -> tuple[dict[str, Any], dict[str, ocp.RestoreArgs]]:
    """What to ask orbax for: the arrays' shapes, and for each its dtype and, if it is a jax array, its sharding."""
    shapes, arguments = {}, {}
    for path, leaf in arrays_by_path(example).items():
        shapes[path] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        if isinstance(leaf, (np.ndarray, np.generic)):
            arguments[path] = ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
        else:
            sharding = leaf.sharding or SingleDeviceSharding(jax.local_devices()[0])
            arguments[path] = ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)
    return shapes, arguments


def tree_from_arrays(example: Any, arrays: dict[str, Any]) -> Any:
    """The structure of `example` with the values of `arrays`; numbers and random keys become what they were."""

    def value(path: str, leaf: Any) -> Any:
        array = arrays[path]
        if _is_random_key(leaf):
            return jax.random.wrap_key_data(array, impl=_key_implementation(leaf))
        if isinstance(leaf, (bool, int, float)):
            return type(leaf)(array)
        return leaf.dtype.type(array) if isinstance(leaf, np.generic) else array

    return jax.tree.unflatten(
        jax.tree.structure(example), [value(path, leaf) for path, leaf in _leaves_by_path(example).items()]
    )
