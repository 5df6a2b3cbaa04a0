"""Parameters to and from safetensors files, tensor by tensor, so that only one copy of the model is in memory."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rlhf.errors import UserError
from rlhf.models.families.family import TensorName

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

NameOf = Callable[[str], TensorName | None]
"""Checkpoint name of a parameter by its dotted path; None for one that is not in the checkpoint."""


def read_weights(folder: Path, abstract: nnx.State, name_of: NameOf, ignored: tuple[str, ...]) -> nnx.State:
    """Fills an abstract state from the safetensors files of a folder.

    Args:
        folder: has model.safetensors, or shards with an index.
        abstract: state whose values have shape and dtype only; the tensors are converted to that dtype.
        name_of: checkpoint name of each parameter.
        ignored: ends of names of tensors that may be there and are not read.

    Returns:
        The state with values.

    Raises:
        UserError: a file cannot be read, or tensors are missing, unknown, or of another shape; all of them are named.
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(_open_weights(path)) for path in _weight_files(folder)]
        files = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 (a safetensors file is no mapping)
        parameters = {_dotted(path): variable for path, variable in nnx.to_flat_state(abstract)}
        expected = {
            stored: shape
            for path, variable in parameters.items()
            if (name := name_of(path)) is not None
            for stored, shape in _stored_shapes(name, variable.shape)
        }
        found = {name: tuple(file.get_slice(name).get_shape()) for name, file in files.items()}
        _check_tensors(folder, expected, found, ignored)

        def read(path, variable):
            name = name_of(_dotted(path))
            return variable if name is None else variable.replace(_read_parameter(name, variable, files))

        return nnx.from_flat_state([(path, read(path, variable)) for path, variable in nnx.to_flat_state(abstract)])


def stored_tensors(state: nnx.State, name_of: NameOf) -> Iterator[tuple[str, np.ndarray]]:
    """Name and value of every tensor of a checkpoint, in the checkpoint's layout."""
    for path, variable in nnx.to_flat_state(state):
        name = name_of(_dotted(path))
        if name is None:
            continue
        value = np.asarray(variable[...])
        if name.per_layer:
            for layer, slice_ in enumerate(value):
                yield name.name.format(layer=layer), name.to_stored(slice_)
        else:
            yield name.name, name.to_stored(value)


def stored_bytes(state: nnx.State, name_of: NameOf) -> int:
    """Size of the tensors of a checkpoint."""
    return sum(variable.nbytes for path, variable in nnx.to_flat_state(state) if name_of(_dotted(path)) is not None)


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


def _weight_files(folder: Path) -> list[Path]:
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if (folder / INDEX_FILE).is_file():
        shards = sorted(set(json.loads((folder / INDEX_FILE).read_text())["weight_map"].values()))
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing:
            raise UserError(
                f"{folder}: {INDEX_FILE} names files that are not there: {', '.join(missing)}", fix="fetch them."
            )
        return [folder / shard for shard in shards]
    found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise UserError(
        f"{folder}: no {SINGLE_FILE} and no {INDEX_FILE}; found: {found}",
        fix="save the model with transformers' save_pretrained, which writes safetensors.",
    )


def _open_weights(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise UserError(
            f"{path} cannot be read: {error}", fix="fetch the file again, or write the model anew: it is not complete."
        ) from error


def _stored_shapes(name: TensorName, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    if name.per_layer:
        layers, *rest = shape
        for layer in range(layers):
            yield name.name.format(layer=layer), name.stored_shape(tuple(rest))
    else:
        yield name.name, name.stored_shape(shape)


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
            fix="check that config.json and the safetensors files belong together.",
        )


def _read_parameter(name: TensorName, variable, files: Mapping) -> jax.Array:
    def read(stored: str, shape: tuple[int, ...]) -> np.ndarray:
        return name.from_stored(files[stored].get_tensor(stored), shape)

    if not name.per_layer:
        return jnp.asarray(read(name.name, variable.shape).astype(variable.dtype))
    stacked = np.empty(variable.shape, variable.dtype)
    for layer in range(len(stacked)):
        stacked[layer] = read(name.name.format(layer=layer), variable.shape[1:])
    return jnp.asarray(stacked)


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
