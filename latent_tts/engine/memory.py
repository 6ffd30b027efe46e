"""What is done where a piece of work does not fit in memory: it is cut in two, and so on, and goes on with parts that fit.

That changes no result: what a rollout is depends on its seed, problem and number alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch

R = TypeVar("R")


class FittingParts:
    """Runs a piece of work in parts that fit in memory.

    Args:
        what: What the parts are counted in, for the warning: "problems".
        advice: What spares the attempt next time, for the warning.

    Attributes:
        most: Rows of a part that have not failed yet; ``None`` while nothing has. It stays for the pieces to come.
    """

    def __init__(self, what: str, advice: str = "") -> None:
        self.what, self.advice = what, advice
        self.most: int | None = None

    def run(self, work: Callable[[int, int], R], size: int, rows_each: int = 1, most: int | None = None) -> list[R]:
        """The results of ``work(first, end)`` over 0 .. size, one for each part in order.

        Args:
            work: Is called for every part.
            size: Pieces that can be parted.
            rows_each: Rows that one piece has in memory.
            most: Rows that a part has at most, whatever fits.

        Raises:
            DoesNotFitError: A part of 1 does not fit.
        """
        results: list[R] = []
        first = 0
        while first < size:
            end = min(size, first + max(1, self.limit(size * rows_each, most) // rows_each))
            part = self.attempt(partial(work, first, end), (end - first) * rows_each, smallest=end - first == 1)
            if part is not None:
                results.append(part[0])
                first = end
        return results

    def limit(self, *rows: int | None) -> int:
        """The smallest of some numbers of rows, and of those that have not failed yet."""
        return min(limit for limit in (*rows, self.most) if limit is not None)

    def attempt(self, work: Callable[[], R], rows: int, smallest: bool) -> tuple[R] | None:
        """What `work` returns, in a tuple; None where it did not fit in memory, and half of its rows are to be tried next.

        The error is gone on return, and with it all that its frames held.

        Raises:
            DoesNotFitError: The smallest part does not fit.
        """
        try:
            return (work(),)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._halve(rows)
        if smallest:
            raise DoesNotFitError(self.what)
        return None

    def _halve(self, rows: int) -> None:
        if self.most is None and rows > 1:
            warnings.warn(
                f"{rows} {self.what} at a time do not fit in memory: going on with smaller parts.{self.advice}",
                stacklevel=3,
            )
        self.most = max(1, rows // 2)


class DoesNotFitError(MemoryError):
    """The smallest part does not fit; the caller knows what can be made smaller still, or what to tell the user."""


_NO_ROOM = ("out of memory", "DefaultCPUAllocator", "not enough memory", "CUDNN_STATUS_NOT_SUPPORTED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the main memory, has no room: the messages that accelerate knows, too."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_ROOM)
