"""Best-of-N: the answer of the rollout with the highest reduced score (arXiv 2510.07745: argmax_n sum_t r_t).

Score ties: the lowest rollout index wins. The expectation over k-subsets is closed: order the rollouts by score, best
first; the one at rank r = 0..N-1 is the best of a k-subset with probability C(N-1-r, k-1) / C(N, k).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from torch import Tensor

from latent_tts.aggregation.base import (
    Aggregate,
    Named,
    StepReduction,
    answer_classes,
    check_ks,
    rollout_scores,
    score_order,
)
from latent_tts.errors import UserError


@dataclass(frozen=True)
class BestOfN(Named):
    """The single best-scored rollout decides."""

    reduction: StepReduction = "sum"
    """How the step scores of a rollout become one score."""
    skip_invalid: bool = False
    """Rank rollouts without a parsed answer last; the published rule ranks by score alone."""

    family = "best_of_n"
    label = "best-of-N"
    needs_scores: ClassVar[bool] = True

    @property
    def options(self) -> tuple[str, ...]:
        """What differs from the published rule."""
        return (self.reduction,) * (self.reduction != "sum") + ("skip_invalid",) * self.skip_invalid

    def choose(self, answers: Sequence[float | None], scores: Tensor | None, mask: Tensor | None = None) -> Aggregate:
        """The best-scored rollout; its answer may be None. See `Aggregation.choose`."""
        answer_classes(answers)
        index = int(self._order(answers, scores, mask)[0])
        return Aggregate(answers[index], index, None)

    def expected_accuracy(
        self,
        answers: Sequence[float | None],
        correct: Sequence[bool],
        scores: Tensor | None,
        mask: Tensor | None,
        ks: Sequence[int],
        rng_key: int = 0,
    ) -> list[float]:
        """Exact mean over all k-subsets (module docstring). See `Aggregation.expected_accuracy`."""
        check_ks(ks, len(answers))
        if len(correct) != len(answers):
            raise UserError(f"there are {len(answers)} answers but {len(correct)} correctness marks: give one each")
        right = np.asarray(correct, dtype=float)[self._order(answers, scores, mask)]
        return [float(rank_probabilities(len(answers), k) @ right) for k in ks]

    def _order(self, answers: Sequence[float | None], scores: Tensor | None, mask: Tensor | None) -> np.ndarray:
        order = score_order(rollout_scores(self.name, answers, scores, mask, self.reduction))
        if not self.skip_invalid:
            return order
        invalid = np.array([answers[i] is None for i in order])
        return np.concatenate([order[~invalid], order[invalid]])


@lru_cache(maxsize=256)
def rank_probabilities(num_rollouts: int, k: int) -> np.ndarray:
    """(N,), to be read only: the chance that the rollout at rank r = 0..N-1 is the best of k drawn without replacement.

    From C(N-1-r, k-1) / C(N, k) by the ratio of neighbours, (N-k-r) / (N-1-r), starting at k / N: no large numbers.
    """
    rank = np.arange(num_rollouts - 1)
    ratio = np.clip(num_rollouts - k - rank, 0, None) / (num_rollouts - 1 - rank)
    chances = k / num_rollouts * np.concatenate([[1.0], np.cumprod(ratio)])
    chances.setflags(write=False)  # shared by all callers through the cache
    return chances
