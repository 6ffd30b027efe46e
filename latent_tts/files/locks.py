"""One writer at a time, where the system knows locks: it gives them back however a process ends."""

from __future__ import annotations

from typing import IO, Any

try:
    import fcntl
except ImportError:  # not a POSIX system: two writers at once go unnoticed there
    fcntl = None  # type: ignore[assignment]


def lock(file: IO[Any]) -> bool:
    """Takes an open file for this process until it is closed, without waiting; False where another process has it.

    A file system without locks has nothing to say against it.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
