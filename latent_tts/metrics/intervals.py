"""95 % intervals of means over problems that hold at 0 % and 100 %, for 5 problems and for 1,000: pure functions of moments.

A problem's value is a share in [0, 1]: 0 or 1 where it has one answer, a mean over rollouts or over their subsets elsewhere.
What is uncertain is which problems were drawn, so the interval is one of a mean over independent problems. A percentile
bootstrap has width 0 where all problems agree and covers about 83 % of the time at 5 problems; these do not.

    share       the score interval with continuity correction (Newcombe 1998, "Two-sided confidence intervals for the single
                proportion", method 4) at an effective number of problems: the number of 0/1 values that would vary as little
                (Korn & Graubard 1998). How much less they vary is taken together with `PRIOR_SUCCESSES` of 0/1 values, so that
                a few that happen to agree do not pass for certainty: by the number of successes, not of problems, since near
                0 % and 100 % it is the rare problem not drawn that matters. For 0/1 values it is the plain score interval.
    difference  of paired values in [-1, 1]: one pair won and one lost are added (Bonett & Price 2012, "Adjusted Wald
                confidence interval for a difference of binomial proportions based on paired data"), then normal.

`tests/test_intervals.py` simulates how often they hold the truth.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z = NormalDist().inv_cdf(0.975)
PRIOR_SUCCESSES = 3.0

Bounds = tuple[NDArray[np.float64], NDArray[np.float64]]


class Interval(NamedTuple):
    """An estimate and its 95 % interval, in the unit of the value."""

    mean: float
    low: float
    high: float


def share_bounds(mean: ArrayLike, mean_square: ArrayLike, num_problems: float) -> Bounds:
    """Ends of the intervals of mean shares.

    Args:
        mean: (K,) means over problems of values in [0, 1].
        mean_square: (K,) means of their squares.
        num_problems: P, at least 1.

    Returns:
        Lower and upper ends, (K,) float64 in [0, 1]; the mean lies between them.
    """
    mean = np.clip(np.asarray(mean, dtype=np.float64), 0.0, 1.0)
    count = effective_problems(mean, np.asarray(mean_square, dtype=np.float64), num_problems)
    low = _score_bound(mean, count)
    high = 1.0 - _score_bound(1.0 - mean, count)
    return low, high


def effective_problems(
    mean: NDArray[np.float64], mean_square: NDArray[np.float64], num_problems: float
) -> NDArray[np.float64]:
    """How many 0/1 values of the same mean would vary as little as the mean of these: (K,), at least P."""
    binary = mean * (1.0 - mean)  # the largest variance that values in [0, 1] of this mean can have
    seen = np.clip(mean_square - mean**2, 0.0, binary)
    ratio = (num_problems * seen + PRIOR_SUCCESSES) / (num_problems * binary + PRIOR_SUCCESSES)
    effective: NDArray[np.float64] = num_problems / ratio
    return effective


def _score_bound(mean: NDArray[np.float64], count: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lower end, of half a success less for continuity; the upper one is its mirror image."""
    share = mean - 0.5 / count
    root = Z * np.sqrt(np.maximum(share * (1.0 - share) / count + (Z / (2.0 * count)) ** 2, 0.0))
    bound = (share + Z**2 / (2.0 * count) - root) / (1.0 + Z**2 / count)
    return np.where(share <= 0.0, 0.0, np.clip(bound, 0.0, mean))


def difference_bounds(mean: ArrayLike, mean_square: ArrayLike, num_problems: float) -> Bounds:
    """Ends of the intervals of mean paired differences.

    Args:
        mean: (K,) means over problems of differences in [-1, 1].
        mean_square: (K,) means of their squares.
        num_problems: P, at least 1.

    Returns:
        Lower and upper ends, (K,) float64 in [-1, 1]; the mean lies between them.
    """
    mean, mean_square = np.asarray(mean, dtype=np.float64), np.asarray(mean_square, dtype=np.float64)
    count = num_problems + 2.0
    centre = num_problems * mean / count
    variance = (num_problems * mean_square + 2.0) / count - centre**2
    reach = Z * np.sqrt(variance / count)
    return np.clip(np.minimum(centre - reach, mean), -1.0, 1.0), np.clip(np.maximum(centre + reach, mean), -1.0, 1.0)
