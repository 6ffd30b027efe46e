"""The processes of a run: what each has found is made known to the others, in the order of their ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch.distributed

from latent_tts.errors import UserError

T = TypeVar("T")
Exchange = Callable[[Any], list[Any]]
"""Hands this process' value to all; what all have handed over, by rank."""


def is_together() -> bool:
    """Whether this process is one of several that have found each other."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def all_of(value: T) -> list[T]:
    """The values of all ranks, by rank; a collective: every rank calls it, and it returns when all have."""
    if not is_together():
        return [value]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found


def done_by_all(work: Callable[[], T], exchange: Exchange = all_of) -> list[T]:
    """What every rank's work gives, by rank; a collective.

    Raises:
        UserError: That of the first rank whose work has raised one, on all ranks: none waits for another that has stopped.
    """
    mine: T | UserError
    try:
        mine = work()
    except UserError as error:
        mine = error
    found = exchange(mine)
    for one in found:
        if isinstance(one, UserError):
            raise one
    return found


def parts_for_first(part: T) -> Iterator[T]:
    """On rank 0 the parts of all ranks in order, its own first; on others none. A collective, to be gone through to its end.

    They come one at a time: memory holds one beside what is made of them.
    """
    if not is_together():
        yield part
        return
    if torch.distributed.get_rank() > 0:
        torch.distributed.send_object_list([part], dst=0)
        return
    yield part
    for rank in range(1, torch.distributed.get_world_size()):
        found: list[Any] = [None]
        torch.distributed.recv_object_list(found, src=rank)
        yield found[0]
