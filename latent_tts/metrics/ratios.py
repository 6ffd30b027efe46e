"""Intervals of shares of rollouts: those of a problem are alike, and say less than as many rollouts of as many problems."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latent_tts.metrics.intervals import Interval, share_bounds


def ratio_interval(parts: ArrayLike, wholes: ArrayLike) -> Interval:
    """The share sum(parts) / sum(wholes) over P problems, with its 95 % interval.

    The variance over problems is that of the linearised ratio (Cochran 1977, "Sampling Techniques", 6.4),
    P / (P - 1) * sum (part - share * whole)^2 / (sum wholes)^2; the interval is the score interval of as many 0/1 values as would
    vary as much (Korn & Graubard 1998, as in `latent_tts.metrics.intervals`), of one a problem where nothing varies.

    Args:
        parts: (P,) what counts of each problem, between 0 and its whole.
        wholes: (P,) of how much; problems of 0 are left out.

    Returns:
        The interval in 0..1; NaN where every whole is 0.
    """
    part, whole = np.asarray(parts, dtype=np.float64), np.asarray(wholes, dtype=np.float64)
    part, whole = part[whole > 0], whole[whole > 0]
    count = len(whole)
    if not count:
        return Interval(np.nan, np.nan, np.nan)
    share = float(np.clip(part.sum() / whole.sum(), 0.0, 1.0))
    residuals: NDArray[np.float64] = part - share * whole
    variance = count / max(1, count - 1) * float(np.square(residuals).sum()) / float(whole.sum()) ** 2
    effective = share * (1 - share) / variance if variance > 1e-12 and count > 1 else float(count)
    low, high = share_bounds([share], [share], effective)
    return Interval(share, float(low[0]), float(high[0]))
