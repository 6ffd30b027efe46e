"""How items become batches: by similar length, the same plan on every rank, no item twice and none padded in."""

import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import torch.distributed as dist
from lightning import LightningDataModule
from torch.utils.data import DistributedSampler

from latent_tts.errors import UserError

T = TypeVar("T")

_MOST_WORKERS = 64  # or as many as there are cores: thousands are a slip that stops the machine


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) outside a distributed run."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def length_sorted_batches(
    items: Iterable[T], batch_size: int, length: Callable[[T], int], sort_window: int
) -> Iterator[list[T]]:
    """The batches of a stream: windows of it are sorted by length, longest first, and cut.

    A window is `sort_window` items rounded down to whole batches, one batch at least; only the last batch of the
    stream can be smaller. The plan depends on nothing else.
    """
    window_size = max(1, sort_window // batch_size) * batch_size
    stream = iter(items)
    while window := list(islice(stream, window_size)):
        window.sort(key=length, reverse=True)  # stable: equal lengths stay in the stream's order
        for start in range(0, len(window), batch_size):
            yield window[start : start + batch_size]


def batch_size_for_all(num_items: int, batch_size: int, world_size: int) -> int:
    """The batch size with which every rank has a batch: smaller than asked for where there are few items, at least 1."""
    enough = num_items > batch_size * (world_size - 1)
    return batch_size if enough else max(1, num_items // world_size)


def require_positive(**options: int | None) -> None:
    """UserError for an option that is below 1; None means that it is not given."""
    for name, value in options.items():
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")


def require_workers(num_workers: int) -> None:
    """UserError for a number of data-loader processes below 0, or beyond what a machine is for."""
    if num_workers < 0:
        raise UserError(f"num_workers must be at least 0, got {num_workers}: with 0 the main process reads the data")
    most = max(_MOST_WORKERS, os.cpu_count() or 1)
    if num_workers > most:
        raise UserError(f"num_workers {num_workers} would start as many processes here: give at most {most}")


def unchanged(batch: T) -> T:
    """Collates nothing: a batch is a list of text."""
    return batch


class LengthGroupedBatches(DistributedSampler[list[int]]):
    """Batches of indices of similar length for training: a function of (seed, epoch), shared out over the ranks.

    All indices of an epoch are shuffled and cut in pools of `pool_batches` batches; a pool is sorted by length, cut
    in batches, and its batches are shuffled. Batch i goes to rank i % world_size. Items that don't fill a batch on
    every rank are left out of the epoch, so all ranks take the same number of steps.

    It is a DistributedSampler so that a Lightning Trainer tells it the epoch and doesn't put one of its own on top.

    Args:
        num_items: Number of items in an epoch.
        length: Length of the item with a given index.
        batch_size: Items in a batch of one rank.
        seed: Seed of the order.
        pool_batches: Batches per pool, on each rank.
        fresh_per_epoch: Epoch e holds the indices from e * num_items on, instead of those from 0 on.
        rank: This process's rank; found out by itself where it is None.
        world_size: Number of processes; found out by itself where it is None.
    """

    def __init__(
        self,
        num_items: int,
        length: Callable[[int], int],
        batch_size: int,
        seed: int,
        pool_batches: int = 16,
        fresh_per_epoch: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        own_rank, own_world_size = rank_and_world_size()
        self.rank = own_rank if rank is None else rank
        self.world_size = own_world_size if world_size is None else world_size
        super().__init__(range(num_items), self.world_size, self.rank, shuffle=True, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.num_items, self.length, self.batch_size = num_items, length, batch_size
        self.pool_batches, self.fresh_per_epoch = pool_batches, fresh_per_epoch
        self._entered = (0, 0)
        if not len(self):
            raise UserError(
                f"{num_items} training examples don't fill one batch of {batch_size} on each of "
                f"{self.world_size} devices: lower batch_size"
            )

    def __len__(self) -> int:
        return self.num_items // (self.batch_size * self.world_size)

    def enter_at(self, epoch: int, batch: int) -> None:
        """A resumed run goes through this epoch from this batch of the rank on; the other epochs are whole."""
        self._entered = (epoch, batch)
        self.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        epoch, batch = self._entered
        first = batch * self.world_size if epoch == self.epoch else 0
        return islice(self._batches_of_all_ranks(), first + self.rank, None, self.world_size)

    def _batches_of_all_ranks(self) -> Iterator[list[int]]:
        rng = random.Random(f"{self.seed}/{self.epoch}")
        first = self.epoch * self.num_items if self.fresh_per_epoch else 0
        order = list(range(first, first + self.num_items))
        rng.shuffle(order)
        del order[len(self) * self.world_size * self.batch_size :]
        pool_size = self.pool_batches * self.world_size * self.batch_size
        for start in range(0, len(order), pool_size):
            pool = sorted(order[start : start + pool_size], key=self.length)
            batches = [pool[i : i + self.batch_size] for i in range(0, len(pool), self.batch_size)]
            rng.shuffle(batches)
            yield from batches


class GoesOnInEpoch(LightningDataModule):
    """A data module whose training goes on in the middle of an epoch: a checkpoint holds how many batches have been used."""

    entered: tuple[int, int] = (0, 0)
    """Epoch and batch that the training begins with."""

    def state_dict(self) -> dict[str, int]:
        """Epoch and number of its batches that every process has been through."""
        assert self.trainer is not None
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
        is_over = batches >= self.trainer.num_training_batches
        return {"epoch": self.trainer.current_epoch, "batch": 0 if is_over else batches}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.entered = (state_dict["epoch"], state_dict["batch"])


class LengthSortedBatches(DistributedSampler[list[int]]):
    """Batches of indices for validation: longest first, batch i on rank i % world_size, every item exactly once.

    Batches are smaller than `batch_size` where that leaves a rank without any: Lightning would wait for it forever.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int) -> None:
        rank, world_size = rank_and_world_size()
        super().__init__(lengths, world_size, rank, shuffle=False)  # type: ignore[arg-type]
        order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
        batch_size = batch_size_for_all(len(lengths), batch_size, world_size)
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        self.batches = batches[rank::world_size]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)
