"""Risk against coverage, where answers are withheld: how often those that are given are wrong; pure functions.

Coverage here is the share of problems that are answered, as in the literature of selective prediction, not coverage@k.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latent_tts.metrics.intervals import Interval, share_bounds

Floats = NDArray[np.float64]


def risk_curve(confidence: ArrayLike, right: ArrayLike) -> Floats:
    """The share of wrong answers among the i problems of the highest confidence, for i = 1..P.

    Of problems of equal confidence any may come first: each counts with the mean of them, the expectation over their orders.
    (Geifman & El-Yaniv 2017, arXiv 1705.08500.)

    Args:
        confidence: (P,) any numbers.
        right: (P,) 0..1, how right the answers are.

    Returns:
        (P,) float64.
    """
    confidence, wrong = np.asarray(confidence, dtype=np.float64), 1.0 - np.asarray(right, dtype=np.float64)
    _, group = np.unique(-confidence, return_inverse=True)
    mean = np.bincount(group, weights=wrong) / np.bincount(group)
    risks: Floats = np.cumsum(mean[np.sort(group)]) / np.arange(1, len(wrong) + 1)
    return risks


def area(risks: Floats) -> float:
    """The area under the risk-coverage curve, its mean over the numbers of answered problems (arXiv 1805.08206)."""
    return float(risks.mean())


def risk_interval(confidence: ArrayLike, right: ArrayLike, share: float) -> Interval:
    """The risk where only the problems of the highest confidence are answered, with its 95 % interval over these.

    Args:
        confidence: (P,) any numbers.
        right: (P,) 0..1, how right the answers are.
        share: Of the problems, in 0..1, that is answered, to the next whole problem above.
    """
    risks = risk_curve(confidence, right)
    answered = max(1, math.ceil(share * len(risks) - 1e-9))
    risk = float(risks[answered - 1])
    low, high = share_bounds([risk], [risk], answered)
    return Interval(risk, float(low[0]), float(high[0]))
