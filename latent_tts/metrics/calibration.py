"""Whether sigmoid(score) can be read as the chance to reach the right answer."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from latent_tts.errors import UserError
from latent_tts.metrics.exact_sum import PARTS, exact_parts, exact_total
from latent_tts.metrics.ranking import check_scores


def _score_calibration_update(scores: Tensor, values: Tensor, mask: Tensor | None, num_bins: int) -> Tensor:
    """(3, bins, 3): of each bin the number of step scores, the exact sum of their probabilities, and that of the values."""
    mask = check_scores(scores, mask)
    if values.shape != scores.shape:
        raise UserError(f"values have shape {tuple(values.shape)}, but the scores {tuple(scores.shape)}: give one each")
    predicted = scores.detach()[mask].double().sigmoid()
    observed = values.to(scores.device)[mask].double()
    bins = (predicted * num_bins).long().clamp_max(num_bins - 1)
    table = torch.zeros(3, num_bins, PARTS, dtype=torch.int64, device=scores.device)
    return table.index_add(1, bins, exact_parts(torch.stack([torch.ones_like(predicted), predicted, observed])))


def _score_calibration_compute(table: Tensor) -> dict[str, Tensor]:
    count, predicted, observed = exact_total(table)
    error = (predicted - observed).abs().sum() / count.sum()
    return {"error": error, "predicted": predicted / count, "observed": observed / count, "count": count}


class ScoreCalibration(Metric):
    """Expected calibration error of sigmoid(step score) against the Monte-Carlo values, and the bins for its plot.

    `compute` gives {"error": (), "predicted": (bins,), "observed": (bins,), "count": (bins,)}: the mean over step
    scores of |mean prediction - mean value| of their bin (Guo et al. 2017, arXiv 1706.04599), with bins of equal width
    over 0..1, NaN in an empty bin. Scores trained by a contrastive loss are free up to a constant per problem and step:
    expect them to be uncalibrated; scores trained by BCE should not be.

    Args:
        num_bins: number of bins.
    """

    higher_is_better = False
    full_state_update = False
    table: Tensor

    def __init__(self, num_bins: int = 15) -> None:
        super().__init__()
        if num_bins < 1:
            raise UserError(f"the number of calibration bins is {num_bins}: it must be at least 1")
        self.num_bins = num_bins
        self.add_state("table", torch.zeros(3, num_bins, PARTS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, values: Tensor, mask: Tensor | None = None) -> None:
        """Add P problems: scores, values in 0..1 and the mask of existing steps, all (P, N, T)."""
        self.table += _score_calibration_update(scores, values, mask, self.num_bins).to(self.table.device)

    def compute(self) -> dict[str, Tensor]:
        """The error and the bins, float64."""
        return _score_calibration_compute(self.table)
