"""Accuracy of strategies over problems, and what they gain on one of them, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torchmetrics import Metric

from latent_tts.errors import UserError
from latent_tts.metrics.exact_sum import PARTS, exact_parts, exact_total
from latent_tts.metrics.intervals import Bounds, Interval, difference_bounds, share_bounds

Column = TypeVar("Column", bound=Hashable)


def _mean_update(values: Tensor, num_columns: int) -> tuple[Tensor, Tensor, int]:
    """Exact sums and sums of squares over problems, (K, 3) each, and the number of problems."""
    if values.ndim != 2 or values.shape[1] != num_columns:
        raise UserError(f"values have shape {tuple(values.shape)}: they must be (problems, {num_columns})")
    values = values.double()
    if not torch.isfinite(values).all():
        raise UserError("a value of a problem is not finite: leave the problem out, or count it as wrong")
    return exact_parts(values).sum(0), exact_parts(values.square()).sum(0), len(values)


def _mean_compute(sums: Tensor, squares: Tensor, count: Tensor, bounds: Callable[..., Bounds]) -> list[Interval]:
    """The mean of each column with its interval; NaN before the first problem."""
    number = int(count)
    if not number:
        return [Interval(math.nan, math.nan, math.nan)] * len(sums)
    means = (exact_total(sums) / number).numpy()
    low, high = bounds(means, (exact_total(squares) / number).numpy(), float(number))
    return [Interval(*map(float, row)) for row in zip(means, low, high, strict=True)]


class MeanOverProblems(Metric, Generic[Column]):
    """Means over problems of K named values with intervals; states are exact sums, so order, batches and ranks change nothing.

    Args:
        columns: What the K values are, any distinct keys: strategies, or values of k.
    """

    full_state_update = False
    sums: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        if len(set(columns)) < len(columns):
            raise UserError(f"columns of a metric repeat: {', '.join(map(str, columns))}; name each once")
        self.columns = list(columns)
        for name in ("sums", "squares"):
            self.add_state(name, torch.zeros(len(self.columns), PARTS, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _add(self, values: Tensor) -> None:
        sums, squares, count = _mean_update(values, len(self.columns))
        self.sums += sums.to(self.sums.device)
        self.squares += squares.to(self.sums.device)
        self.count += count

    def _intervals(self, bounds: Callable[..., Bounds]) -> dict[Column, Interval]:
        found = _mean_compute(self.sums, self.squares, self.count, bounds)
        return dict(zip(self.columns, found, strict=True))


class Accuracy(MeanOverProblems[Column]):
    """Mean accuracy of strategies; `compute` gives {column: Interval} in 0..1.

    A value is 0 or 1 where a strategy gave one answer, else its expected accuracy (`Aggregation.expected_accuracy`).
    """

    higher_is_better = True

    def update(self, values: Tensor) -> None:
        """Add P problems: (P, K), the accuracy of each strategy on each problem."""
        self._add(values)

    def compute(self) -> dict[Column, Interval]:
        """{column: mean and interval}."""
        return self.so_far()

    def so_far(self) -> dict[Column, Interval]:
        """What `compute` gives, of the problems of this process alone."""
        return self._intervals(share_bounds)


class PairedDifference(MeanOverProblems[Column]):
    """Mean paired difference of strategies to a baseline on the same problems; `compute` gives {column: Interval}."""

    def update(self, values: Tensor, baseline: Tensor) -> None:
        """Add P problems: accuracies (P, K), and those of the baseline (P,)."""
        self._add(values - baseline[:, None])

    def compute(self) -> dict[Column, Interval]:
        """{column: mean difference and interval}, in -1..1."""
        return self._intervals(difference_bounds)


class MeanCost(MeanOverProblems[Column]):
    """Mean token steps of strategies; `compute` gives {column: mean}."""

    higher_is_better = False

    def update(self, values: Tensor) -> None:
        """Add P problems: (P, K) token steps."""
        self._add(values)

    def compute(self) -> dict[Column, float]:
        """{column: mean}; NaN before the first problem."""
        means: list[Any] = (exact_total(self.sums) / self.count.cpu()).tolist()
        return dict(zip(self.columns, means, strict=True))
