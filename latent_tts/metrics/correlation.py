"""Correlation of step scores with Monte-Carlo values, over everything and within problems."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from latent_tts.errors import UserError
from latent_tts.metrics.exact_sum import PARTS, exact_parts, exact_total
from latent_tts.metrics.ranking import check_scores


def _step_score_correlation_update(scores: Tensor, values: Tensor, mask: Tensor | None, num_steps: int) -> Tensor:
    """(9, T, 3) exact sums over rollouts: 1, x, y, xx, yy, xy, and xx, yy, xy of the deviations from the problem's mean."""
    mask = check_scores(scores, mask, num_steps)
    if values.shape != scores.shape:
        raise UserError(f"values have shape {tuple(values.shape)}, but the scores {tuple(scores.shape)}: give one each")
    x = torch.where(mask, scores.detach().double(), 0.0)
    y = torch.where(mask, values.to(scores.device).double(), 0.0)
    count = mask.sum(1, keepdim=True).clamp_min(1)  # (P, 1, T)
    dx = torch.where(mask, x - x.sum(1, keepdim=True) / count, 0.0)
    dy = torch.where(mask, y - y.sum(1, keepdim=True) / count, 0.0)
    terms = torch.stack([mask.double(), x, y, x * x, y * y, x * y, dx * dx, dy * dy, dx * dy])  # (9, P, N, T)
    return torch.nn.functional.pad(exact_parts(terms).sum((1, 2)), (0, 0, 0, num_steps - scores.shape[2]))


def _step_score_correlation_compute(sums: Tensor) -> dict[str, Tensor]:
    n, x, y, xx, yy, xy, within_xx, within_yy, within_xy = exact_total(sums)
    return {
        "per_step": _correlation(xx - x * x / n, yy - y * y / n, xy - x * y / n, xx, yy),
        "within": _correlation(within_xx, within_yy, within_xy, xx, yy),
    }


def _correlation(var_x: Tensor, var_y: Tensor, cov: Tensor, xx: Tensor, yy: Tensor) -> Tensor:
    """cov / sqrt(var_x var_y); NaN where a variance is nothing but rounding beside the sum of squares."""
    varies = (var_x > 1e-12 * xx) & (var_y > 1e-12 * yy)
    return torch.where(varies, (cov / (var_x * var_y).sqrt()).clamp(-1, 1), torch.nan)


class StepScoreCorrelation(Metric):
    """Pearson correlation of step scores with Monte-Carlo values: {"per_step": (T,), "within": (T,)}.

    `per_step` is over all rollouts of all problems; it also rewards telling hard problems from easy ones. `within`
    centres scores and values on their mean over the rollouts of each problem first: what ranking the rollouts of a
    problem needs. NaN where scores or values do not vary.

    Args:
        num_steps: T, the largest number of latents a rollout can have.
    """

    higher_is_better = True
    full_state_update = False
    sums: Tensor

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.add_state("sums", torch.zeros(9, num_steps, PARTS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, values: Tensor, mask: Tensor | None = None) -> None:
        """Add P problems: scores, values and the mask of existing steps, all (P, N, T') with T' <= T."""
        self.sums += _step_score_correlation_update(scores, values, mask, self.num_steps).to(self.sums.device)

    def compute(self) -> dict[str, Tensor]:
        """The correlations, float64."""
        return _step_score_correlation_compute(self.sums)
