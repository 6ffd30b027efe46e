"""Accuracy of an aggregation at every k."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from latent_tts.errors import UserError


def _aggregation_accuracy_update(expected: Tensor, num_ks: int) -> tuple[Tensor, int]:
    """Sums over problems (K,) and the number of problems."""
    if expected.ndim != 2 or expected.shape[1] != num_ks:
        raise UserError(f"expected accuracies have shape {tuple(expected.shape)}: they must be (problems, {num_ks})")
    return expected.double().sum(0), len(expected)


def _aggregation_accuracy_compute(sums: Tensor, count: Tensor, ks: Sequence[int]) -> dict[int, float]:
    return dict(zip(ks, (sums / count).tolist(), strict=True))


class AggregationAccuracy(Metric):
    """Mean over problems of an aggregation's expected accuracy at every k; `compute` gives {k: value in 0..1}.

    The values come from `Aggregation.expected_accuracy`, once per problem; the same values go into the record and into
    `BootstrapIntervals`, so that nothing is computed twice:

        accuracy = AggregationAccuracy(ks)
        accuracy.update(torch.tensor([MajorityVoting().expected_accuracy(answers, correct, None, None, ks)]))

    Args:
        ks: the values of k; see `latent_tts.aggregation.k_grid`.
    """

    higher_is_better = True
    full_state_update = False
    sums: Tensor
    count: Tensor

    def __init__(self, ks: Sequence[int]) -> None:
        super().__init__()
        self.ks = list(ks)
        self.add_state("sums", torch.zeros(len(self.ks), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, expected: Tensor) -> None:
        """Add P problems: `expected` (P, K), the expected accuracy of each problem at each k."""
        sums, count = _aggregation_accuracy_update(expected, len(self.ks))
        self.sums += sums.to(self.sums.device)
        self.count += count

    def compute(self) -> dict[int, float]:
        """{k: accuracy}."""
        return _aggregation_accuracy_compute(self.sums, self.count, self.ks)
