"""Which rollouts are computed together: as many as are quick and fit in memory, or always the same ones.

A library may choose the order of a product's sums by the product's shape, as those of GPUs do. With parts of a fixed size nothing
that a rollout is computed among follows from what was asked for: the rows are those of its own problem and part, first to last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from latent_tts.engine.memory import FittingParts
from latent_tts.engine.rollouts import Rollouts
from latent_tts.engine.state import ThoughtState
from latent_tts.errors import UserError

T = TypeVar("T")

MOST_ROWS = {"cuda": 16384, "cpu": 512}  # rollouts at once; a CPU is no faster with more, and a killed run loses less


class RolloutParts:
    """Cuts the rollouts of encoded prompts in parts.

    Args:
        size: R. Problems come one at a time, and always rollouts kR to kR + R - 1 of one together, whichever of them are asked
            for. ``None``: any number of both, as many as are quick, and fewer where memory is short.

    Raises:
        UserError: R below 1.
    """

    def __init__(self, size: int | None) -> None:
        if size is not None and size < 1:
            raise UserError(f"rollouts_per_part must be at least 1, got {size}.")
        self.size = size
        self._fitting = FittingParts("rollouts")

    def check(self, num_problems: int) -> None:
        """Raises a ``UserError`` for several problems, where they have to come one at a time."""
        if self.size is not None and num_problems > 1:
            raise UserError(
                f"With rollouts_per_part problems are computed one at a time: pass one question, not {num_problems}."
            )

    def run(
        self, work: Callable[[int, int], T], start: ThoughtState, num_rollouts: int, first_rollout: int = 0
    ) -> list[T]:
        """What ``work(first, end)`` gives for rollouts first to end (not included), one result for each part in order.

        The parts hold the rollouts that are asked for; of a fixed size, also those beside them (see ``asked``).

        Raises:
            DoesNotFitError: There is no room for one rollout of every problem.
        """
        end = first_rollout + num_rollouts
        if self.size is not None:
            begin = first_rollout - first_rollout % self.size
            return [work(first, first + self.size) for first in range(begin, end, self.size)]
        most = MOST_ROWS.get(start.keys.device.type, MOST_ROWS["cuda"])
        return self._fitting.run(
            lambda first, end: work(first_rollout + first, first_rollout + end), num_rollouts, start.num_problems, most
        )

    def asked(self, rollouts: Rollouts, num_rollouts: int, first_rollout: int = 0) -> Rollouts:
        """Of the rollouts of whole parts those that were asked for, as if they alone had been drawn."""
        if self.size is None:
            return rollouts
        before = first_rollout % self.size
        return rollouts.between(before, before + num_rollouts)

    def whole(self, num_rollouts: int) -> int:
        """N, or the rollouts of all parts that hold the first N."""
        size = self.size or 1
        return -(-num_rollouts // size) * size
