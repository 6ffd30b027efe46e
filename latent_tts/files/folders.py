"""Whether a folder can be made and written to, found out before anything is computed for it."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

_LONGEST_NAME = 255  # bytes, on nearly all file systems


def why_unwritable(folder: Path) -> str | None:
    """Why no file can be put in a folder, which may be missing, in words; None where one can.

    A file without a name is made on the way, which is the only way to know: permissions say nothing to root, nor of what is no
    file system on a disk.
    """
    there = folder.absolute()
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in there.parts):
        return os.strerror(errno.ENAMETOOLONG)
    try:
        while not _is_there(there):
            there = there.parent
        if not there.is_dir():
            return f"{there} is a file"
        with tempfile.TemporaryFile(dir=there):
            return None
    except OSError as error:
        return f"nothing can be put in {there} ({error.strerror or error})"


def _is_there(path: Path) -> bool:
    """Whether there is something of this name, be it a link to nothing; OSError where the system does not let one look."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
