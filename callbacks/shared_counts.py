"""What all ranks have counted, known to rank 0 while they work, without a call that any of them would wait in."""

from __future__ import annotations

import io
from copy import deepcopy
from typing import Any

import torch
import torch.distributed
from torch.distributed.distributed_c10d import _get_default_store

from latent_tts.evaluation.ranks import is_together
from latent_tts.evaluation.summary import RunningMetrics

_PARTS = ("accuracy", "coverage", "invalid", "count")


class SharedCounts:
    """Every rank leaves its sums in the store by which the ranks have found each other; rank 0 adds those that are there.

    The sums of another rank are as old as its last `leave`. A single process shares with nobody.
    """

    def leave(self, metrics: RunningMetrics, speeds: dict[str, float]) -> None:
        """Puts this rank's sums where rank 0 finds them."""
        if not is_together():
            return
        states = {part: dict(getattr(metrics, part).metric_state) for part in _PARTS}
        buffer = io.BytesIO()
        torch.save({"states": states, "speeds": speeds}, buffer)
        store: Any = _get_default_store()  # its type knows no bytes, which it takes
        store.set(_key(torch.distributed.get_rank()), buffer.getvalue())

    def gather(self, metrics: RunningMetrics, speeds: dict[str, float]) -> tuple[RunningMetrics, dict[str, float]]:
        """This rank's metrics and speeds together with those that the other ranks have left."""
        if not is_together():
            return metrics, speeds
        metrics, speeds, store = deepcopy(metrics), dict(speeds), _get_default_store()
        for rank in range(torch.distributed.get_world_size()):
            if rank == torch.distributed.get_rank() or not store.check([_key(rank)]):
                continue
            left = torch.load(io.BytesIO(store.get(_key(rank))), weights_only=True)
            for part, state in left["states"].items():
                getattr(metrics, part).merge_state(state)
            for name, speed in left["speeds"].items():
                speeds[name] = speeds.get(name, 0.0) + speed
        return metrics, speeds


def _key(rank: int) -> str:
    return f"latent_tts/live/{rank}"
