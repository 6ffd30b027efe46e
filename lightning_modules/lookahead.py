"""The micro batches of an optimizer step before their turn: a loss with several means has to know what is still to come."""

from __future__ import annotations

from itertools import islice
from typing import Any

from torch.utils.data import DataLoader


class Lookahead:
    """Goes through an epoch of a loader a second time, as a reader of its batches and without its workers.

    Args:
        loader: One whose sampler gives the indices of whole batches, the same whenever an epoch is gone through.
        epoch: That is being trained.
        first: Number of the batch that training entered it with.
    """

    def __init__(self, loader: Any, epoch: int, first: int) -> None:
        assert isinstance(loader, DataLoader)
        self.epoch, self._loader, self._indices, self._next = epoch, loader, iter(loader.sampler), first

    def batches(self, start: int, count: int) -> list[Any]:
        """Batches of the epoch from number `start` on, which is none that was gone past."""
        indices = list(islice(self._indices, start - self._next, start - self._next + count))
        self._next = start + count
        return [self._loader.collate_fn(self._loader.dataset[index]) for index in indices]
