"""How many rollouts are drawn a second."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch


@dataclass
class RolloutClock:
    """Rollouts that were drawn, and the seconds that it took."""

    seconds: float = 0.0
    num_rollouts: int = 0

    @property
    def rollouts_per_second(self) -> float | None:
        """None before the first."""
        return self.num_rollouts / self.seconds if self.num_rollouts else None

    def add(self, started: float, num_rollouts: int, device: torch.device) -> None:
        """Counts rollouts since a moment of `time.perf_counter`; a GPU is waited for."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.seconds += time.perf_counter() - started
        self.num_rollouts += num_rollouts
