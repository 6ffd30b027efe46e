"""How many rollouts are drawn a second, and drawn and scored."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass
class RolloutClock:
    """Rollouts that were drawn, and the seconds that it took to draw them, and to score them."""

    seconds: float = 0.0
    num_rollouts: int = 0
    seconds_of_scoring: float = 0.0

    @property
    def rollouts_per_second(self) -> float | None:
        """None before the first."""
        return self.num_rollouts / self.seconds if self.num_rollouts else None

    @property
    def speeds(self) -> dict[str, float]:
        """Rollouts per second, without their scores and, where they are scored, with them; empty before the first."""
        if not self.num_rollouts:
            return {}
        found = {"rollouts_per_second": self.num_rollouts / self.seconds}
        if self.seconds_of_scoring:
            found["rollouts_per_second_with_scoring"] = self.num_rollouts / (self.seconds + self.seconds_of_scoring)
        return found

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Counts the seconds within it; scores end on the CPU, so that nothing has to be waited for."""
        started = time.perf_counter()
        yield
        self.seconds_of_scoring += time.perf_counter() - started

    def add(self, started: float, num_rollouts: int, device: torch.device) -> None:
        """Counts rollouts since a moment of `time.perf_counter`; a GPU is waited for."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.seconds += time.perf_counter() - started
        self.num_rollouts += num_rollouts
