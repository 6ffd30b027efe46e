"""Majority voting: the answer that most rollouts reached.

Ties: `choose` takes the tied answer that the lowest rollout index reached; `expected_accuracy` shares the credit
equally among the tied answers, which is the mean of that rule over the orders of the rollouts. A None never votes; a
subset of only Nones is wrong.

The expectation is exact. Draw k of the N rollouts without replacement; class i (an answer that n_i rollouts share) is
seen X_i times. Give every class an independent uniform priority that decides ties. Class c with X_c = j and priority y
wins if every other class has X_i < j, or X_i = j and a lower priority (chance y). With P_i(x) = sum_m C(n_i, m) x^m the
generating function of class i, cut off above m = j and its last term times y,

    P(c wins) = 1 / C(N, k) * sum_j C(n_c, j) * integral_0^1 [x^(k-j)] prod_{i != c} P_i(x; j, y) dy.

The integrand is a polynomial in y, so Gauss-Legendre nodes integrate it exactly. Each C(n_i, m) is replaced by the
binomial probability C(n_i, m) p^m (1-p)^(n_i-m) with p = k/N: the factor p^k (1-p)^(N-k) is common to numerator and
denominator, and no term overflows or cancels (all are positive).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from latent_tts.aggregation.base import Aggregate, Aggregation, ScoredAnswers

# A chance of a count that cannot be seen in the sums, which are of the order of 1 / sqrt(N) or more
_NEGLIGIBLE = 1e-24


@dataclass(frozen=True)
class MajorityVoting(Aggregation):
    """One rollout, one vote. Needs no scores."""

    family = "majority_voting"
    label = "majority voting"

    def pick(self, rollouts: ScoredAnswers) -> Aggregate:
        """The answer with the most votes; `weights` are the votes."""
        classes, keys = rollouts.classes, rollouts.keys
        if not keys:
            return Aggregate(None, None, {})
        votes = np.bincount(classes[classes >= 0])
        winner = int(votes.argmax())  # classes are numbered by first appearance: argmax takes the lowest rollout index
        index = int((classes == winner).argmax())
        return Aggregate(rollouts.answers[index], index, dict(zip(keys, votes.astype(float).tolist(), strict=True)))

    def expectation(
        self, rollouts: ScoredAnswers, correct: Sequence[bool], ks: Sequence[int], rng_key: int
    ) -> list[float]:
        """Exact mean over all k-subsets (module docstring)."""
        classes, credit = rollouts.classes, rollouts.credit(correct)
        sizes = np.bincount(classes[classes >= 0], minlength=len(credit))
        blanks = int((classes < 0).sum())
        accuracy = np.zeros(len(ks))
        for c in np.flatnonzero(credit):
            others = sizes[:c].tolist() + sizes[c + 1 :].tolist()
            accuracy += credit[c] * win_probabilities(int(sizes[c]), others, blanks, ks)
        shares: list[float] = accuracy.clip(0, 1).tolist()
        return shares


def win_probabilities(size: int, others: Sequence[int], blanks: int, ks: Sequence[int]) -> np.ndarray:
    """Chance that a class of `size` rollouts wins the vote among k drawn without replacement, ties shared equally.

    Args:
        size: rollouts of the class, at least 1.
        others: sizes of the other classes.
        blanks: rollouts that never vote.
        ks: rollouts drawn, each 1 <= k <= N = size + sum(others) + blanks.

    Returns:
        (K,) float64, to be read only.
    """
    return _win_probabilities(size, tuple(sorted(Counter(others).items())), blanks, tuple(ks))


@lru_cache(maxsize=8192)  # problems with the same counts of votes are many: easy ones, and those with few rollouts
def _win_probabilities(size: int, others: tuple[tuple[int, int], ...], blanks: int, ks: tuple[int, ...]) -> np.ndarray:
    """`win_probabilities` by the sizes of the other classes, ascending, each with the number of classes that have it."""
    chances = np.array([_win_probability(size, others, blanks, k) for k in ks])
    chances.setflags(write=False)  # shared by all callers through the cache
    return chances


def _win_probability(size: int, others: tuple[tuple[int, int], ...], blanks: int, k: int) -> float:
    """One of them."""
    total = size + sum(other * number for other, number in others) + blanks
    largest = others[-1][0] if others else 0
    if k == total:
        return 0.0 if largest > size else 1.0 / (1 + dict(others).get(size, 0))
    rate = k / total
    mine = _binomial(size, rate, k)
    rest = _binomial(total - size, rate, k)
    unreachable = np.arange(largest + 1, min(size, k) + 1)  # counts that no other class can tie
    won = float((mine[unreachable] * rest[k - unreachable]).sum())
    # every count has its place in `rest`: those of a chance that cannot be seen are left out, as those of `mine`
    contested = np.arange(1, min(size, largest, k) + 1)
    reached = contested[(mine[contested] > _NEGLIGIBLE) & (rest[k - contested] > _NEGLIGIBLE)]
    if len(reached):
        won += _contested(mine, reached, others, blanks, k, rate)
    return won / float(_binomial(total, rate, k)[k])


def _contested(
    mine: np.ndarray, reached: np.ndarray, others: tuple[tuple[int, int], ...], blanks: int, k: int, rate: float
) -> float:
    """Probability of winning with one of the counts, where other classes can tie or win.

    The coefficient of x^(k-j) in the product of the other classes' polynomials is read off its values at the roots of unity,
    as many as there are degrees that can be seen: the degrees of the product are no likelier than those of all others' votes.
    """
    counts, priorities, weights = _rows(reached.tolist(), others, k)
    spread = sum(other * number for other, number in others) + blanks
    seen = np.flatnonzero(_binomial(spread, rate, spread) > _NEGLIGIBLE)
    period = int(seen[-1] - seen[0]) + 1
    half = np.arange(period // 2 + 1)  # of real coefficients the other roots are conjugates
    roots = np.exp(2j * np.pi / period * np.arange(period))
    powers = roots[np.arange(counts[-1] + 1)[:, None] * half % period]  # (degrees, roots)
    product = (1 - rate + rate * roots[half]) ** blanks  # (roots,), and from the first class on (rows, roots)
    for size, number in others:
        terms = _binomial(size, rate, int(counts[-1]))[:, None] * powers
        below = np.cumsum(terms, axis=0)
        # fewer votes than this class, or as many and lost with chance 1 - y
        product = product * (below[counts - 1] + priorities[:, None] * terms[counts]) ** number
    sides = np.where((half == 0) | (2 * half == period), 1.0, 2.0) / period
    values = (product * roots[-(k - counts)[:, None] * half % period]).real * sides
    return float((weights * mine[counts] * values.sum(1)).sum())


def _rows(reached: list[int], others: tuple[tuple[int, int], ...], k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One row for each count j, in ascending order, and each node y of its quadrature: (counts, priorities, weights)."""
    counts, priorities, weights = [], [], []
    for j in reached:
        max_ties = min(sum(number for size, number in others if size >= j), (k - j) // j)
        nodes, node_weights = _gauss_legendre(max_ties // 2 + 1)
        counts.append(np.full(len(nodes), j))
        priorities.append(nodes)
        weights.append(node_weights)
    return np.concatenate(counts), np.concatenate(priorities), np.concatenate(weights)


@lru_cache(maxsize=1024)
def _gauss_legendre(num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on (0, 1), exact for polynomials up to degree 2 * num_nodes - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    return (nodes + 1) / 2, weights / 2


@lru_cache(maxsize=4096)
def _binomial(n: int, rate: float, top: int) -> np.ndarray:
    """C(n, m) rate^m (1 - rate)^(n - m) for m = 0..top, 0 where m > n; 0 < rate < 1."""
    m = np.arange(min(n, top) + 1)
    log_factorial = _log_factorials(n + 1)
    log_choose = log_factorial[n] - log_factorial[m] - log_factorial[n - m]
    terms = np.exp(log_choose + m * math.log(rate) + (n - m) * math.log1p(-rate))
    return np.pad(terms, (0, top + 1 - len(m)))


@lru_cache(maxsize=4096)
def _log_factorials(count: int) -> np.ndarray:
    return np.array([math.lgamma(i + 1) for i in range(count)])
