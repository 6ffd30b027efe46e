"""Spearman's rank correlation, and what is left of it when a third quantity is accounted for: pure functions, with intervals."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latent_tts.metrics.intervals import Interval, Z


def rank_correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's: the correlation of the ranks, equal values taking their mean rank; NaN where one does not vary."""
    first, second = (_ranks(np.asarray(values, dtype=np.float64)) for values in (x, y))
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def partial_rank_correlation(x: ArrayLike, y: ArrayLike, given: ArrayLike) -> float:
    """The correlation of the ranks of x and y after the part of both that is linear in the ranks of a third is taken away.

    (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2)) of Spearman's r; where the third does not vary it is r_xy. NaN where x
    or y does not vary, or is nothing but the third.
    """
    plain = rank_correlation(x, y)
    with_x, with_y = rank_correlation(x, given), rank_correlation(y, given)
    if math.isnan(with_x) or math.isnan(with_y):
        return plain
    left = (1 - with_x**2) * (1 - with_y**2)
    return float("nan") if left < 1e-12 else (plain - with_x * with_y) / math.sqrt(left)


def correlation_interval(correlation: float, num_problems: int, num_given: int = 0) -> Interval:
    """A rank correlation with its 95 % interval: Fisher's z with the variance (1 + r^2 / 2) / (P - 3 - given).

    (Bonett & Wright 2000, "Sample size requirements for estimating Pearson, Kendall and Spearman correlations"; one degree of
    freedom less for each quantity that is accounted for.) It is -1 to 1 where there are too few problems to say, NaN for NaN.

    Args:
        correlation: r.
        num_problems: P pairs.
        num_given: Quantities that were accounted for.
    """
    free = num_problems - 3 - num_given
    if math.isnan(correlation):
        return Interval(math.nan, math.nan, math.nan)
    if free < 1:
        return Interval(correlation, -1.0, 1.0)
    if abs(correlation) >= 1:
        return Interval(correlation, correlation, correlation)
    centre, reach = math.atanh(correlation), Z * math.sqrt((1 + correlation**2 / 2) / free)
    return Interval(correlation, math.tanh(centre - reach), math.tanh(centre + reach))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(count) - (count - 1) / 2)[place]
    return ranks
