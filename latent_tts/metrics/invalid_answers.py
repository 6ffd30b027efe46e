"""The rate of rollouts without a parsed answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


def _invalid_answer_rate_update(answers: Sequence[Sequence[float | None]]) -> tuple[int, int]:
    """The number of Nones and of rollouts."""
    flat = [answer is None for row in answers for answer in row]
    return sum(flat), len(flat)


def _invalid_answer_rate_compute(invalid: Tensor, count: Tensor) -> Tensor:
    return invalid / count


class InvalidAnswerRate(Metric):
    """Share of rollouts whose answer does not parse, in 0..1, over all rollouts of all problems."""

    higher_is_better = False
    full_state_update = False
    invalid: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("invalid", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, answers: Sequence[Sequence[float | None]]) -> None:
        """Add problems: for each, its N parsed answers, None where there is none."""
        invalid, count = _invalid_answer_rate_update(answers)
        self.invalid += invalid
        self.count += count

    def compute(self) -> Tensor:
        """The rate, a float64 scalar; NaN before the first rollout."""
        return _invalid_answer_rate_compute(self.invalid, self.count)
