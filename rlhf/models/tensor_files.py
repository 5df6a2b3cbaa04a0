"""The files of a checkpoint as one collection of named tensors, each read when it is asked for: safetensors or torch's `.bin`."""

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from rlhf.errors import UserError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TORCH_FILE = "pytorch_model.bin"
TORCH_INDEX_FILE = "pytorch_model.bin.index.json"


@dataclass(frozen=True)
class StoredArray:
    """A tensor in a file.

    Attributes:
        shape: its shape.
        read: reads it, in the dtype it is kept in.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def open_tensors(folder: Path) -> dict[str, StoredArray]:
    """The tensors of a checkpoint by name; safetensors where there are any.

    Raises:
        UserError: there are no weights, files are missing or broken, or torch is needed and not installed.
    """
    for single, index, listed in (
        (SINGLE_FILE, INDEX_FILE, _in_safetensors),
        (TORCH_FILE, TORCH_INDEX_FILE, _in_torch_file),
    ):
        if files := _files(folder, single, index):
            return {name: array for file in files for name, array in listed(file).items()}
    found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise UserError(
        f"{folder}: no {SINGLE_FILE} and no {INDEX_FILE}, nor {TORCH_FILE}; found: {found}",
        fix="save the model with transformers' save_pretrained, which writes safetensors.",
    )


def _files(folder: Path, single: str, index: str) -> list[Path]:
    if (folder / single).is_file():
        return [folder / single]
    if not (folder / index).is_file():
        return []
    names = sorted(set(json.loads((folder / index).read_text())["weight_map"].values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: {index} names files that are not there: {', '.join(missing)}", fix="fetch them.")
    return [folder / name for name in names]


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise UserError(
            f"{path} cannot be read: {error}", fix="fetch the file again, or write the model anew: it is not complete."
        ) from error


def _in_safetensors(path: Path) -> dict[str, StoredArray]:
    # Opened anew for each tensor: what has been read of an open file stays in memory, and would double the model's share.
    def read(name: str) -> np.ndarray:
        with _open(path) as file:
            return file.get_tensor(name)

    with _open(path) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (is no mapping)
    return {name: StoredArray(shape, partial(read, name)) for name, shape in shapes.items()}


def _in_torch_file(path: Path) -> dict[str, StoredArray]:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path} is in torch's own format, and torch is not installed",
            fix="install torch, or save the model as safetensors (save_pretrained does).",
        ) from None
    load = partial(torch.load, path, map_location="cpu", weights_only=True)
    try:
        tensors: Mapping[str, torch.Tensor] = load(mmap=True) if zipfile.is_zipfile(path) else load()
    except Exception as error:
        raise UserError(f"{path} cannot be read: {error}", fix="fetch the file again: it is not complete.") from error

    def read(tensor: torch.Tensor) -> np.ndarray:
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.detach().numpy()

    return {name: StoredArray(tuple(tensor.shape), partial(read, tensor)) for name, tensor in tensors.items()}
