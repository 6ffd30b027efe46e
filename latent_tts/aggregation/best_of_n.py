"""Best-of-N: the answer of the rollout with the highest reduced score (arXiv 2510.07745: argmax_n sum_t r_t).

Score ties: the lowest rollout index wins. The expectation over k-subsets is closed: order the rollouts by score, best
first; the one at rank r = 0..N-1 is the best of a k-subset with probability C(N-1-r, k-1) / C(N, k).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from latent_tts.aggregation.base import Aggregate, ScoredAggregation, ScoredAnswers, score_order


@dataclass(frozen=True)
class BestOfN(ScoredAggregation):
    """The single best-scored rollout decides."""

    skip_invalid: bool = False
    """Rank rollouts without a parsed answer last; the published rule ranks by score alone."""

    family = "best_of_n"
    label = "best-of-N"

    @property
    def options(self) -> tuple[str, ...]:
        """What differs from the published rule."""
        return (self.reduction,) * (self.reduction != "sum") + ("skip_invalid",) * self.skip_invalid

    def pick(self, rollouts: ScoredAnswers) -> Aggregate:
        """The best-scored rollout; its answer may be None."""
        index = int(self._order(rollouts)[0])
        return Aggregate(rollouts.answers[index], index, None)

    def expectation(
        self, rollouts: ScoredAnswers, correct: Sequence[bool], ks: Sequence[int], rng_key: int
    ) -> list[float]:
        """Exact mean over all k-subsets (module docstring)."""
        right = np.asarray(correct, dtype=float)[self._order(rollouts)]
        return [float(rank_probabilities(len(right), k) @ right) for k in ks]

    def _order(self, rollouts: ScoredAnswers) -> np.ndarray:
        order = score_order(rollouts.scores)
        if not self.skip_invalid:
            return order
        invalid = rollouts.classes[order] < 0
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
