"""Files and folders that are there whole or not at all, after a kill and after a power failure; and the sentence for a full disk.

What is written aside is synced before it takes its name, and the folder after it, so that the name never stands for less than its
content. Records are not synced line by line: what a crash of the machine takes of their end is drawn again.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def put_in_place(path: Path, rank: int = 0) -> Iterator[Path]:
    """Gives a path beside `path`, and puts what is written there in its place; nothing is left where that fails.

    A kill may leave the file beside it, whose name is that of `path` after a dot, and the rank.
    """
    aside = path.with_name(f".{path.name}.{rank}")
    try:
        yield aside
        sync(aside)
        os.replace(aside, path)
        sync(path.parent)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise


def write_whole(path: Path, content: str | bytes | Iterable[str], rank: int = 0) -> None:
    """Writes a file so that a kill leaves the old content or the new one, never a part, whatever other ranks do meanwhile.

    Args:
        path: Its folder is made where it is missing.
        content: Text, bytes, or parts of a text that need not be in memory together.
        rank: Of this process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with put_in_place(path, rank) as aside, aside.open("wb") as file:
        for part in [content] if isinstance(content, (str, bytes)) else content:
            file.write(part.encode() if isinstance(part, str) else part)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Gives an empty folder beside `folder`, and puts it in its place; an earlier one is there until then."""
    aside, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        for path in (*aside.rglob("*"), aside):
            sync(path)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.rename(folder, old)
        os.rename(aside, folder)
        sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def sync(path: Path) -> None:
    """Waits until a file or the names in a folder are on the disk; some file systems cannot sync folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def no_room(error: BaseException | None) -> str | None:
    """Why an error means that files cannot be written, such as `No space left on device`; None where it means something else.

    Libraries wrap what the system says in errors of their own; the sentence of a full disk is then part of theirs.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            what = os.strerror(error.errno)
            return f"{error.filename}: {what}" if error.filename else what
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            if os.strerror(number) in str(error):
                return os.strerror(number)
        error = error.__cause__ or error.__context__
    return None
