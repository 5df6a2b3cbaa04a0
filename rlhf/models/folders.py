"""Folders that appear whole or not at all, whatever happens while they are written."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf.disk import disk_full, is_disk_full
from rlhf.errors import UserError


@contextmanager
def replaced_folder(folder: Path, size: int) -> Iterator[Path]:
    """Gives a temporary folder beside `folder` to write to, and puts it in the place of `folder` at the end.

    After an error or a crash `folder` is what it was before.

    Args:
        folder: where the files are to be; what is there is replaced.
        size: bytes about to be written, checked against the free space before anything is.

    Raises:
        UserError: the disk is full.
    """
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    former = folder.with_name(f".{folder.name}.former-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        free = shutil.disk_usage(partial).free
        if free < size:
            raise disk_full(folder, f"{size / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are free")
        yield partial
        if folder.exists():
            folder.rename(former)
        partial.rename(folder)
    except Exception as error:
        if isinstance(error, UserError) or not is_disk_full(error):
            raise
        raise disk_full(folder, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if former.exists() and not folder.exists():
            former.rename(folder)
        shutil.rmtree(former, ignore_errors=True)
