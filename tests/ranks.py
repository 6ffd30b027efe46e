"""Ranks without processes: each a thread, which hears of the others as ranks do."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

from latent_tts.evaluation.ranks import Exchange

T = TypeVar("T")


def in_ranks(world_size: int, work: Callable[[int, Exchange], T]) -> list[T]:
    """What `work(rank, exchange)` gives on every rank; what they exchange is pickled, as between processes."""
    barrier, slots = Barrier(world_size, timeout=60), [b""] * world_size

    def run(rank: int) -> T:
        def exchange(value: Any) -> list[Any]:
            slots[rank] = pickle.dumps(value)
            barrier.wait()
            found = [pickle.loads(one) for one in slots]
            barrier.wait()  # before anybody puts the next one there
            return found

        return work(rank, exchange)

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(run, range(world_size)))
