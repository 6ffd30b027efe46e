"""Coverage@k (pass@k): the chance that at least one of k rollouts is right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latent_tts.aggregation.base import check_ks
from latent_tts.errors import UserError
from latent_tts.metrics.accuracy import MeanOverProblems
from latent_tts.metrics.intervals import Interval, share_bounds


def coverage_at(correct: Tensor, ks: Sequence[int]) -> Tensor:
    """Unbiased coverage of each problem at each k.

    1 - C(N-c, k) / C(N, k) for c right rollouts of N, in the stable product form 1 - prod_{i=N-c+1}^{N} (1 - k/i) of
    Chen et al. 2021 (arXiv 2107.03374, figure 3): no large number appears.

    Args:
        correct: (P, N) true where a rollout is right.
        ks: K values, each between 1 and N.

    Returns:
        (P, K) float64.

    Raises:
        UserError: a k out of reach, or `correct` that is not two-dimensional.
    """
    if correct.ndim != 2:
        raise UserError(f"correctness has shape {tuple(correct.shape)}: it must be (problems, rollouts)")
    check_ks(ks, correct.shape[1])
    num_right = correct.bool().sum(1)  # (P,)
    rollout = torch.arange(correct.shape[1], 0, -1, dtype=torch.float64, device=correct.device)  # N, N-1, ..., 1
    k = torch.tensor(list(ks), dtype=torch.float64, device=correct.device)[:, None]
    missed = (1 - k / rollout).clamp_min(0).cumprod(1)  # (K, N): chance to miss c = 1..N right rollouts
    missed = torch.cat([torch.ones_like(k), missed], 1)  # (K, N+1): c = 0..N
    return 1 - missed[:, num_right].T


class Coverage(MeanOverProblems[int]):
    """Mean unbiased coverage over problems at every k; `compute` gives {k: Interval} in 0..1.

    Args:
        ks: The values of k; see `latent_tts.aggregation.k_grid`.
    """

    higher_is_better = True

    def update(self, correct: Tensor) -> None:
        """Add P problems: `correct` (P, N), true where a rollout is right."""
        self._add(coverage_at(correct, self.columns))

    def compute(self) -> dict[int, Interval]:
        """{k: coverage and interval}; NaN before the first problem."""
        return self.so_far()

    def so_far(self) -> dict[int, Interval]:
        """What `compute` gives, of the problems of this process alone."""
        return self._intervals(share_bounds)
