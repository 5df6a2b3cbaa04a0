"""A full disk: how to know it from the errors of different libraries, and what to tell the user."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf.errors import UserError

# No space left, no quota left, and a file larger than this process may write.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Libraries that are not written in Python report the system's error as text only.
DISK_FULL_TEXTS = (
    "No space left on device",
    *(text for number in DISK_FULL for text in (f"os_error_code='{number}'", f"(os error {number})")),
)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, says that no more can be written."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return True
        if any(text in str(error) for text in DISK_FULL_TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False


def disk_full(path: Path | str, detail: object) -> UserError:
    """The error for a file or folder that could not be written."""
    return UserError(
        f"{path}: the disk is full, it could not be written ({detail})",
        fix="free some space, or choose an output folder on another disk, and run the command again.",
    )


@contextmanager
def explaining_full_disk(path: Path | str) -> Iterator[None]:
    """Turns the error of a full disk, met while `path` is written, into a `UserError`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_disk_full(error):
            raise
        raise disk_full(path, error) from error
