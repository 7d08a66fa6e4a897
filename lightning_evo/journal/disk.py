"""What a journal needs of the file system: whole files, appends that last, and a lock against other writers.

Everything is on the disk, by ``fsync``, when a function returns.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from pathlib import Path
from typing import Any

from lightning_evo.journal.records import JournalError

fcntl: Any
try:
    import fcntl
except ModuleNotFoundError:
    fcntl = None

__all__ = ["append", "create", "cut", "is_full", "lock"]


def create(path: Path, content: bytes) -> None:
    """A new file, which appears under its name complete, or not at all.

    Raises:
        FileExistsError: If there is such a file; it is not touched.
        OSError: If it can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with open(new, "wb", buffering=0) as file:
            _write(file, content)
            os.fsync(file.fileno())
        _link(new, path)
    finally:
        new.unlink(missing_ok=True)
    _sync_folder(path.parent)


def append(file: io.FileIO, end: int, data: bytes) -> None:
    """Write at the file's end, all or nothing.

    Raises:
        OSError: If it can't be written. The file ends where it did before, as far as that can still be done.
    """
    try:
        file.seek(end)
        _write(file, data)
        os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):  # what can't be cut now is cut when the journal is next opened
            cut(file, end)
        raise


def cut(file: io.FileIO, end: int) -> None:
    """Cut off what comes after this byte."""
    file.truncate(end)
    os.fsync(file.fileno())


def is_full(error: OSError) -> bool:
    """Whether there is no space left, or none that this user may have."""
    return error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))


def lock(file: io.FileIO, path: Path) -> None:
    """Keep other processes from appending, where the file system can. Forked data-loading workers don't inherit it.

    Raises:
        JournalError: If another process holds the lock.
    """
    if fcntl is None:  # Windows
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise JournalError(
                f"Another process is appending to {path}. Wait until it has ended, or run without a journal "
                "(journal=False)."
            ) from error


def _write(file: io.FileIO, data: bytes) -> None:
    while data:
        data = data[os.write(file.fileno(), data) :]


def _link(new: Path, path: Path) -> None:
    """Give a file its name, unless there is one of that name."""
    try:
        os.link(new, path)
    except FileExistsError:
        message = "This file exists and is not overwritten; choose another name"
        raise FileExistsError(errno.EEXIST, message, str(path)) from None
    except OSError as error:  # a file system without links
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
            raise
        with open(path, "xb"):  # fails if it exists
            pass
        os.replace(new, path)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
