"""What a data path means: local files found by name, folder or glob, or a data set of the Hugging Face hub."""

import glob
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.data.readers import READERS, RawRecord, file_format, read_records
from rlhf.errors import UserError

_SPLIT_NAMES = {
    "train": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
}


@dataclass(frozen=True)
class Source:
    """One stretch of records in one layout.

    Attributes:
        name: the file, or the hub data set with its split (for messages).
        records: reads it from the start; the argument asks for one record a line of a text file.
    """

    name: str
    records: Callable[[bool], Iterator[RawRecord]]


def find_sources(path: str | Sequence[str], *, split: str, name: str | None, streaming: bool) -> list[Source]:
    """The sources that a path, or a list of paths, stands for.

    Raises:
        UserError: nothing is there, or a file's format is unknown.
    """
    paths = [path] if isinstance(path, str) else list(path)
    if not paths or not all(paths):
        raise UserError("data.path is not set or has an empty entry", fix="give at least one file, folder or hub name")
    return [source for each in paths for source in _sources_of(each, split, name, streaming)]


def rows_in_memory(rows: Sequence[Mapping[str, Any]]) -> Source:
    """Records that a program already holds, as a source like any other; each is named by its number."""
    return Source("rows in memory", lambda _: ((f"row {index}", dict(row)) for index, row in enumerate(rows)))


def _sources_of(path: str, split: str, name: str | None, streaming: bool) -> list[Source]:
    local = Path(path).expanduser()
    if local.is_file():
        return [_file_source(local)]
    if local.is_dir():
        return _folder_sources(local, split)
    if any(mark in path for mark in "*?["):
        return _glob_sources(path)
    if _looks_local(path):
        raise UserError(
            f"data.path {path} does not exist", fix="check the path (it is taken from the folder you run in)"
        )
    return [Source(f"{path}[{split}]", lambda _: _hub_records(path, split, name, streaming))]


def _looks_local(path: str) -> bool:
    """A hub name is `name` or `owner/name`; anything else, or a data file's ending, means a local path."""
    return not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", path) or file_format(Path(path)) is not None


def _file_source(path: Path) -> Source:
    if file_format(path) is None:
        raise UserError(f"{path}: unknown file format", fix=f"use one of {', '.join(READERS)} (also with .gz)")
    return Source(str(path), lambda text_lines: read_records(path, text_lines=text_lines))


def _glob_sources(pattern: str) -> list[Source]:
    matches = sorted(Path(match) for match in glob.glob(str(Path(pattern).expanduser()), recursive=True))
    files = [match for match in matches if match.is_file() and file_format(match)]
    if not files:
        raise UserError(
            f"data.path {pattern} matches no data file",
            fix="check the pattern (it is taken from the folder you run in)",
        )
    return [_file_source(file) for file in files]


def _folder_sources(folder: Path, split: str) -> list[Source]:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return [Source(f"{folder}[{split}]", lambda _: _saved_records(folder, split))]
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file_format(file))
    if not files:
        raise UserError(
            f"data.path {folder} has no data file", fix=f"put {', '.join(READERS)} files there (also with .gz)"
        )
    of_split = [file for file in files if _split_of(file) in (None, _SPLIT_NAMES.get(split, split))]
    if not of_split:
        splits = sorted({_split_of(file) or "" for file in files})
        raise UserError(
            f"data.path {folder} has no file of the split {split!r}; its files are named after {', '.join(splits)}",
            fix="set data.split, or name the file itself as data.path",
        )
    return [_file_source(file) for file in of_split]


def _split_of(file: Path) -> str | None:
    words = re.split(r"[^a-z]+", file.name.lower())
    return next((_SPLIT_NAMES[word] for word in words if word in _SPLIT_NAMES), None)


def _hub_records(path: str, split: str, name: str | None, streaming: bool) -> Iterator[RawRecord]:
    import datasets

    where = f"data.path {path}" + (f", subset {name}" if name else "") + f", split {split}"
    try:
        dataset = datasets.load_dataset(path, name, split=split, streaming=streaming)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{where}: neither a local path nor a data set that the Hugging Face hub would give ({error})",
            fix="check the name, data.name and data.split, and that this machine reaches the hub",
        ) from error
    for index, record in enumerate(dataset):
        yield f"{path}[{split}]:row {index}", dict(record)


def _saved_records(folder: Path, split: str) -> Iterator[RawRecord]:
    import datasets

    dataset = datasets.load_from_disk(str(folder))
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise UserError(
                f"data.path {folder} has no split {split!r}", fix=f"set data.split to one of {', '.join(dataset)}"
            )
        dataset = dataset[split]
    for index, record in enumerate(dataset):
        yield f"{folder}[{split}]:row {index}", dict(record)
