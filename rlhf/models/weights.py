"""Parameters to and from the tensors of a checkpoint, one at a time, so that only one copy of the model is in memory.

Measured with `benchmarks/import_memory.py`; see there.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from safetensors.numpy import save_file

from rlhf.errors import UserError
from rlhf.models.families.layouts import StoredTensor
from rlhf.models.tensor_files import INDEX_FILE, SINGLE_FILE, StoredArray, open_tensors
from rlhf.parallel.host_arrays import fetch, put
from rlhf.parallel.rules import state_shardings


def read_weights(
    folder: Path,
    abstract: nnx.State,
    tensors: Iterable[StoredTensor],
    *,
    ignored: tuple[str, ...] = (),
    prefix: str = "",
    renamed: Mapping[str, str] | None = None,
    mesh: Mesh | None = None,
) -> nnx.State:
    """Fills an abstract state from the checkpoint in a folder.

    Args:
        folder: has the files of the checkpoint.
        abstract: state whose parameters have shape and dtype only; the tensors are converted to that dtype. What no tensor
            holds stays as it is.
        tensors: where each parameter is kept.
        ignored: ends of names of tensors that may be there and are not read.
        prefix: beginning of names that the checkpoint may leave out.
        renamed: other names of tensors, and those in `tensors` that they stand for.
        mesh: where the parameters are laid out, as they are read; None for the default device.

    Returns:
        The state with values.

    Raises:
        UserError: a file cannot be read, or tensors are missing, unknown, or of another shape; all of them are named.
    """
    parameters = {_dotted(path): variable for path, variable in nnx.to_flat_state(abstract)}
    held = _held(tensors, parameters)
    shardings = _shardings(abstract, mesh)
    expected = {name: shape for tensor in held for name, shape in _stored_shapes(tensor, parameters)}
    found = _in_our_names(open_tensors(folder), expected, prefix, renamed or {})
    _check_tensors(folder, expected, {name: array.shape for name, array in found.items()}, ignored)
    values = {
        path: value
        for tensor in held
        for path, value in zip(tensor.parameters, _read(tensor, parameters, shardings, found), strict=True)
    }

    def filled(path, variable):
        value = values.get(_dotted(path))
        return variable if value is None else variable.replace(value)

    return nnx.from_flat_state([(path, filled(path, variable)) for path, variable in nnx.to_flat_state(abstract)])


def stored_tensors(state: nnx.State, tensors: Iterable[StoredTensor]) -> Iterator[tuple[str, np.ndarray]]:
    """Name and value of every tensor of a checkpoint, in the checkpoint's layout; all processes have to take them, in turn."""
    parameters = {_dotted(path): variable for path, variable in nnx.to_flat_state(state)}
    for tensor in _held(tensors, parameters):
        values = [fetch(parameters[path][...]) for path in tensor.parameters]
        if tensor.per_layer:
            for layer in range(len(values[0])):
                yield tensor.name.format(layer=layer), tensor.join([value[layer] for value in values])
        else:
            yield tensor.name, tensor.join(values)


def stored_bytes(state: nnx.State, tensors: Iterable[StoredTensor]) -> int:
    """Size of the tensors of a checkpoint."""
    parameters = {_dotted(path): variable for path, variable in nnx.to_flat_state(state)}
    return sum(parameters[path].nbytes for tensor in _held(tensors, parameters) for path in tensor.parameters)


def write_weights(folder: Path, tensors: Iterator[tuple[str, np.ndarray]], total_bytes: int, shard_bytes: int) -> None:
    """Writes tensors to one file, or to shards of at most `shard_bytes` with an index when they are larger than that.

    Args:
        folder: where to.
        tensors: names and values; taken one shard at a time.
        total_bytes: size of them all.
        shard_bytes: largest file; a tensor that alone is larger has a file to itself.
    """
    if total_bytes <= shard_bytes:
        _write_file(folder / SINGLE_FILE, dict(tensors))
        return
    shards: list[list[str]] = []
    for shard in _shards(tensors, shard_bytes):
        _write_file(folder / _shard_name(len(shards)), shard)
        shards.append(list(shard))
    names = {}
    for number, tensor_names in enumerate(shards):
        final = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / _shard_name(number)).rename(folder / final)
        names |= dict.fromkeys(tensor_names, final)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": names}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))


def _held(tensors: Iterable[StoredTensor], parameters: Mapping) -> list[StoredTensor]:
    """The tensors of a checkpoint that hold parameters of this model."""
    return [tensor for tensor in tensors if all(path in parameters for path in tensor.parameters)]


def _stored_shapes(tensor: StoredTensor, parameters: Mapping) -> Iterator[tuple[str, tuple[int, ...]]]:
    shapes = [parameters[path].shape for path in tensor.parameters]
    if tensor.per_layer:
        for layer in range(shapes[0][0]):
            yield tensor.name.format(layer=layer), tensor.stored_shape([shape[1:] for shape in shapes])
    else:
        yield tensor.name, tensor.stored_shape(shapes)


def _in_our_names(
    found: Mapping[str, StoredArray], expected: Mapping[str, object], prefix: str, renamed: Mapping[str, str]
) -> dict[str, StoredArray]:
    def ours(name: str) -> str:
        if name in expected:
            return name
        name = renamed.get(name, name)
        return prefix + name if name not in expected and prefix + name in expected else name

    return {ours(name): array for name, array in found.items()}


def _check_tensors(
    folder: Path,
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    ignored: tuple[str, ...],
) -> None:
    missing = sorted(expected.keys() - found.keys())
    unknown = sorted(name for name in found.keys() - expected.keys() if not name.endswith(ignored))
    reshaped = [
        f"{name} (expected {list(shape)}, found {list(found[name])})"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    problems = [
        f"{problem}: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
        for problem, names in (
            ("missing", missing),
            ("not part of the model", unknown),
            ("of the wrong shape", reshaped),
        )
        if names
    ]
    if problems:
        raise UserError(
            f"{folder}: the tensors do not fit config.json: " + "; ".join(problems),
            fix="check that config.json and the files with the weights belong together.",
        )


def _shardings(abstract: nnx.State, mesh: Mesh | None) -> dict[str, Sharding]:
    if mesh is None:
        return {}
    states = nnx.to_flat_state(state_shardings(abstract, mesh))
    return {_dotted(path): variable.get_value() for path, variable in states}


def _read(
    tensor: StoredTensor,
    parameters: Mapping,
    shardings: Mapping[str, Sharding],
    found: Mapping[str, StoredArray],
) -> Sequence[jax.Array]:
    """The parameters that a tensor holds; of one kept by layers, one layer at a time is on the host."""
    variables = [parameters[path] for path in tensor.parameters]
    own_shardings = [shardings.get(path) for path in tensor.parameters]
    shapes = [variable.shape for variable in variables]

    def convert(parts):
        return [part.astype(variable.dtype, copy=False) for part, variable in zip(parts, variables, strict=True)]

    if not tensor.per_layer:
        parts = convert(tensor.split(found[tensor.name].read(), shapes))
        return [put(part, sharding) for part, sharding in zip(parts, own_shardings, strict=True)]
    stacked = [
        jnp.zeros(variable.shape, variable.dtype, device=sharding)
        for variable, sharding in zip(variables, own_shardings, strict=True)
    ]
    for layer in range(shapes[0][0]):
        parts = convert(tensor.split(found[tensor.name.format(layer=layer)].read(), [shape[1:] for shape in shapes]))
        stacked = [
            _layer_writer(sharding)(array, put(part, _of_one_layer(sharding)), layer)
            for array, part, sharding in zip(stacked, parts, own_shardings, strict=True)
        ]
    return stacked


@cache
def _layer_writer(sharding: Sharding | None):
    def write(stacked, value, layer):
        return jax.lax.dynamic_update_index_in_dim(stacked, value, layer, axis=0)

    return jax.jit(write, donate_argnums=0, out_shardings=sharding)


def _of_one_layer(sharding: Sharding | None) -> Sharding | None:
    if sharding is None:
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))


def _shards(tensors: Iterator[tuple[str, np.ndarray]], shard_bytes: int) -> Iterator[dict[str, np.ndarray]]:
    shard: dict[str, np.ndarray] = {}
    size = 0
    for name, value in tensors:
        if shard and size + value.nbytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = value
        size += value.nbytes
    yield shard


def _shard_name(number: int) -> str:
    return f"shard-{number}.safetensors"


def _write_file(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    # transformers refuses files that do not say which framework their layout is of.
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path, metadata={"format": "pt"})
