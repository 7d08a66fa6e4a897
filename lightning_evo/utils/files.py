"""Files that appear under their name complete, or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["written_file"]


@contextmanager
def written_file(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A file that appears under its name complete, or not at all.

    Args:
        path: Its name.
        overwrite: Whether to replace an existing file.

    Yields:
        Where to write it.

    Raises:
        FileExistsError: If there is such a file and ``overwrite`` is false; also if it came while this one was written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with written_file(path) as new:
        ...     _ = new.write_text("done")
        >>> path.read_text()
        'done'
    """
    path = Path(path)
    message = f"{path} exists, and is not overwritten without --overwrite (overwrite=True)."
    if path.exists() and not overwrite:
        raise FileExistsError(message)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix or '.new'}")
    try:
        yield new
        with open(new, "rb+") as file:
            os.fsync(file.fileno())
        if path.exists() and not overwrite:
            raise FileExistsError(message)
        os.replace(new, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
