"""Confidence intervals by the Poisson bootstrap: streamed, paired, the same for every order, batch and rank.

The bootstrap draws P problems with replacement, B times; a problem's multiplicity in a replicate is close to
Poisson(1). Drawing it as exactly Poisson(1), independently for each problem (Chamandy et al. 2012, "Estimating
uncertainty for massive data streams"), needs no knowledge of P and no memory of the problems: a replicate's mean is a
ratio of two running sums. The weight is a function of (problem id, replicate), so a problem weighs the same in all
named values: differences between them are paired.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from latent_tts.errors import UserError
from latent_tts.metrics.head_room import head_room_recovered

_POISSON_CDF = np.cumsum([math.exp(-1) / math.factorial(i) for i in range(20)])  # chance of 20 or more: 2e-19


@dataclass(frozen=True)
class Interval:
    """An estimate and its percentile interval, in the unit of the value."""

    mean: float
    low: float
    high: float

    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


class BootstrapResult:
    """The bootstrap's outcome: every named value's mean, and its mean in every replicate.

    Attributes:
        names: K names.
        means: (K,) float64, the means over problems.
        replicates: (B', K) float64, the means over each replicate's problems (replicates that drew none are left out).
    """

    def __init__(self, names: Sequence[str], means: np.ndarray, replicates: np.ndarray) -> None:
        self.names = list(names)
        self.means = means
        self.replicates = replicates

    def interval(self, name: str, level: float = 0.95) -> Interval:
        """The mean of a value and the interval that holds `level` of its replicates."""
        k = self._column(name)
        return _percentiles(float(self.means[k]), self.replicates[:, k], level)

    def difference(self, name: str, baseline: str, level: float = 0.95) -> Interval:
        """The paired difference `name` - `baseline`: both are taken over the same problems in every replicate."""
        a, b = self._column(name), self._column(baseline)
        return _percentiles(float(self.means[a] - self.means[b]), self.replicates[:, a] - self.replicates[:, b], level)

    def head_room(self, name: str, single: str, coverage: str, level: float = 0.95) -> Interval | None:
        """`head_room_recovered` of the means with its interval; None where there is no head-room.

        Replicates without head-room are left out of the interval.
        """
        columns = [self._column(n) for n in (name, single, coverage)]
        share = head_room_recovered(*self.means[columns].tolist())
        shares = [head_room_recovered(*row) for row in self.replicates[:, columns].tolist()]
        known = np.array([s for s in shares if s is not None])
        return None if share is None or not len(known) else _percentiles(share, known, level)

    def _column(self, name: str) -> int:
        if name not in self.names:
            raise UserError(f"'{name}' has no bootstrap values: use one of {', '.join(self.names)}")
        return self.names.index(name)


def _percentiles(mean: float, replicates: np.ndarray, level: float) -> Interval:
    if not 0 < level < 1:
        raise UserError(f"the level of an interval is {level}: it must be between 0 and 1")
    if not len(replicates):
        return Interval(mean, math.nan, math.nan)
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def poisson_weights(problem_id: str, num_replicates: int, seed: int = 0) -> np.ndarray:
    """Poisson(1) multiplicities of a problem in every replicate, (B,) int: a fixed function of (seed, id, replicate).

    The id's blake2b hash keys a counter-based generator (Philox) whose r-th number, by inversion, is replicate r's
    weight.
    """
    digest = hashlib.blake2b(f"{seed}\0{problem_id}".encode(), digest_size=16).digest()
    uniform = (np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(num_replicates) >> 11) * 2.0**-53
    return np.searchsorted(_POISSON_CDF, uniform, side="right")


def _bootstrap_update(
    problem_ids: Sequence[str], values: Tensor, num_names: int, num_replicates: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Weights (B,), weighted sums (B, K), plain sums (K,) and the number of problems."""
    if values.shape != (len(problem_ids), num_names):
        needed = (len(problem_ids), num_names)
        raise UserError(f"bootstrap values have shape {tuple(values.shape)}: they must be {needed}")
    values = values.double()
    if not torch.isfinite(values).all():
        problem_id = problem_ids[int((~torch.isfinite(values)).any(1).nonzero()[0])]
        raise UserError(f"a bootstrap value of problem {problem_id} is not finite: leave the value out")
    drawn = np.zeros((len(problem_ids), num_replicates))
    for row, problem_id in zip(drawn, problem_ids, strict=True):
        row[:] = poisson_weights(problem_id, num_replicates, seed)
    weights = torch.from_numpy(drawn).to(values.device)  # (P, B)
    return weights.sum(0), weights.T @ values, values.sum(0), len(problem_ids)


def _bootstrap_compute(
    names: Sequence[str], weights: Tensor, weighted_sums: Tensor, sums: Tensor, count: Tensor
) -> BootstrapResult:
    drawn = weights > 0
    replicates = weighted_sums[drawn] / weights[drawn, None]
    return BootstrapResult(names, (sums / count).cpu().numpy(), replicates.cpu().numpy())


class BootstrapIntervals(Metric):
    """Percentile intervals for named per-problem values and for their paired differences; see the module docstring.

    States are sums of fixed size, so the result does not depend on the order of the problems, and over ranks it is
    exact (up to float64 rounding). A problem must be given once.

    Args:
        names: K names of the values, such as `coverage@16`, `majority_voting@16`.
        num_replicates: B.
        seed: another seed gives another set of replicates.
    """

    full_state_update = False
    weights: Tensor
    weighted_sums: Tensor
    sums: Tensor
    count: Tensor

    def __init__(self, names: Sequence[str], num_replicates: int = 1000, seed: int = 0) -> None:
        super().__init__()
        if num_replicates < 1:
            raise UserError(f"the number of bootstrap replicates is {num_replicates}: it must be at least 1")
        if len(set(names)) != len(names):
            raise UserError(f"bootstrap names repeat: {', '.join(names)}; name each value once")
        self.names, self.num_replicates, self.seed = list(names), num_replicates, seed
        shapes = {
            "weights": (num_replicates,),
            "weighted_sums": (num_replicates, len(names)),
            "sums": (len(names),),
            "count": (),
        }
        for state, shape in shapes.items():
            self.add_state(state, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, problem_ids: Sequence[str], values: Tensor) -> None:
        """Add P problems: their ids, and their values (P, K), finite, in the order of `names`."""
        weights, weighted_sums, sums, count = _bootstrap_update(
            problem_ids, values.to(self.sums.device), len(self.names), self.num_replicates, self.seed
        )
        self.weights += weights
        self.weighted_sums += weighted_sums
        self.sums += sums
        self.count += count

    def compute(self) -> BootstrapResult:
        """Means and replicates, from which intervals are read."""
        return _bootstrap_compute(self.names, self.weights, self.weighted_sums, self.sums, self.count)
