"""The share of coverage's head-room that an aggregation recovers."""

from __future__ import annotations


def head_room_recovered(accuracy: float, single: float, coverage: float) -> float | None:
    """(accuracy - single) / (coverage - single).

    1 means that the aggregation always finds a right rollout where there is one, 0 that it is no better than one
    rollout; negative values mean worse.

    Args:
        accuracy: of the aggregation over N rollouts, in 0..1.
        single: of one rollout (the mean share of right rollouts).
        coverage: coverage@N.

    Returns:
        The share, or None where coverage leaves no head-room over a single rollout.
    """
    return (accuracy - single) / (coverage - single) if coverage > single else None
