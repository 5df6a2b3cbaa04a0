"""Raw records out of local files, one reader a file format, each record with the place where it stands.

A reader yields `(origin, record)`; a record that cannot be parsed is yielded as a `BadRecord`, so that the caller decides
whether it stops the run.

Text files: where a file contains the line or mark `<|endoftext|>`, each stretch between marks is a document; otherwise the
whole file is one document. Blank lines do not separate documents, because the paragraphs of one story or article belong
together (the packing cuts a document longer than a row).
"""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from rlhf.data.bad_records import BadRecord
from rlhf.errors import UserError

RawRecord = tuple[str, dict[str, Any] | BadRecord]

DOCUMENT_SEPARATOR = "<|endoftext|>"


def read_records(path: Path, *, text_lines: bool = False) -> Iterator[RawRecord]:
    """Reads the records of one file by its suffix.

    Args:
        path: a file whose format `file_format` knows.
        text_lines: a text file holds one record a line instead of documents.

    Yields:
        `file:line` (or `file:record n`, `file:row n` where lines mean nothing) and the record's columns.

    Raises:
        UserError: the file as a whole cannot be read.
    """
    reader = _read_text_lines if text_lines and file_format(path) == ".txt" else READERS[file_format(path)]
    try:
        yield from reader(path)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read: {error}", fix="check that the file is complete and in UTF-8"
        ) from error


def file_format(path: Path) -> str | None:
    """The suffix that names the file's format, without `.gz`; None when no reader knows it."""
    name = path.name.removesuffix(".gz")
    suffix = Path(name).suffix.lower()
    return suffix if suffix in READERS else None


def _open(path: Path) -> IO[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline="")


def _read_json_lines(path: Path) -> Iterator[RawRecord]:
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{path}:{number}", _parse_json_line(line)


def _parse_json_line(line: str) -> dict[str, Any] | BadRecord:
    try:
        return _object(json.loads(line))
    except json.JSONDecodeError as error:
        return BadRecord(f"not valid JSON: {error.msg} at column {error.colno}")


def _read_json(path: Path) -> Iterator[RawRecord]:
    with _open(path) as file:
        text = file.read()
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # one object a line under the name .json, as is common
            yield from _read_json_lines(path)
            return
        raise UserError(
            f"{path}:{error.lineno}: not valid JSON: {error.msg}", fix="mend the file or write it anew"
        ) from error
    for index, record in enumerate(_record_list(path, content)):
        yield f"{path}:record {index}", _object(record)


def _record_list(path: Path, content: Any) -> list[Any]:
    if isinstance(content, list):
        return content
    lists = (
        {key: value for key, value in content.items() if isinstance(value, list)} if isinstance(content, dict) else {}
    )
    if len(lists) != 1:
        raise UserError(
            f"{path}: expected a list of records, or an object with one list in it; found "
            + (f"an object with the lists {sorted(lists)}" if isinstance(content, dict) else type(content).__name__),
            fix="write the records as one JSON list, or one object a line in a .jsonl file",
        )
    return next(iter(lists.values()))


def _object(value: Any) -> dict[str, Any] | BadRecord:
    return (
        value
        if isinstance(value, dict)
        else BadRecord(f"expected an object with named columns, found {type(value).__name__}")
    )


def _read_parquet(path: Path) -> Iterator[RawRecord]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise UserError(
            f"{path} is not a Parquet file: {error}", fix="check that the file was downloaded completely"
        ) from error
    row = 0
    for batch in table.iter_batches():
        for record in batch.to_pylist():
            yield f"{path}:row {row}", record
            row += 1


def _read_separated(path: Path, delimiter: str) -> Iterator[RawRecord]:
    csv.field_size_limit(2**31 - 1)
    with _open(path) as lines:
        rows = csv.DictReader(lines, delimiter=delimiter)
        while True:
            try:
                record = next(rows, None)
            except csv.Error as error:
                yield f"{path}:{rows.line_num}", BadRecord(f"not a valid row: {error}")
                continue
            if record is None:
                return
            if None in record or None in record.values():
                yield (
                    f"{path}:{rows.line_num}",
                    BadRecord(f"expected {len(rows.fieldnames or [])} columns, as in the header"),
                )
            else:
                yield f"{path}:{rows.line_num}", record


def _read_csv(path: Path) -> Iterator[RawRecord]:
    return _read_separated(path, ",")


def _read_tsv(path: Path) -> Iterator[RawRecord]:
    return _read_separated(path, "\t")


def _read_text(path: Path) -> Iterator[RawRecord]:
    with _open(path) as file:
        text = file.read().replace("\r\n", "\n")
    line = 1
    for stretch in text.split(DOCUMENT_SEPARATOR):
        if stretch.strip():
            leading = len(stretch) - len(stretch.lstrip())
            yield f"{path}:{line + stretch.count(chr(10), 0, leading)}", {"text": stretch.strip("\n")}
        line += stretch.count("\n")


def _read_text_lines(path: Path) -> Iterator[RawRecord]:
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{path}:{number}", {"text": line.strip()}


READERS: dict[str, Callable[[Path], Iterator[RawRecord]]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".txt": _read_text,
}
