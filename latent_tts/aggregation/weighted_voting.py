"""Score-weighted voting: every rollout votes for its answer with a weight made from its reduced score.

    softmax: weight_n = exp(score_n / temperature), normalised over the voters (the default)
    sigmoid: weight_n = sigmoid(score_n / temperature)

Both are positive for scores of any sign, so a badly scored rollout counts little and never against its own answer.
Softmax follows the contrastive loss, in which only differences of scores mean something: adding a constant to all
scores changes nothing. Sigmoid fits scores trained as logits of being right. A high temperature approaches majority
voting, a low one (under softmax) best-of-N. With reduction `product`, softmax at temperature 1 weighs a rollout by the
product of its step probabilities.

Ties (weights equal to 1e-9): as in majority voting, `choose` takes the answer of the lowest rollout index,
`expected_accuracy` shares the credit equally. A None never votes. A rollout without a score (no valid step) has weight
0, unless no voter has a score: then all have the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np

from latent_tts.aggregation.base import Aggregate, ScoredAggregation, ScoredAnswers
from latent_tts.aggregation.subsets import is_listed, listed_members, permutations, subsets
from latent_tts.errors import UserError

Weighting = Literal["softmax", "sigmoid"]
TIE = 1e-9
_RANGE = 600.0  # of logarithms: exp of the smallest is still a normal float64


@dataclass(frozen=True)
class WeightedVoting(ScoredAggregation):
    """Votes weighted by score."""

    weighting: Weighting = "softmax"
    """How a score becomes a weight (module docstring)."""
    temperature: float = 1.0
    """Scores are divided by it first; above 0."""

    family = "weighted_voting"
    label = "weighted voting"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise UserError(f"weighted voting has temperature {self.temperature}: it must be above 0")
        if self.weighting not in get_args(Weighting):
            raise UserError(f"weighting '{self.weighting}' is unknown: use one of {', '.join(get_args(Weighting))}")

    @property
    def options(self) -> tuple[str, ...]:
        """See `Named.options`."""
        reduction = (self.reduction,) * (self.reduction != "sum")
        weighting = (self.weighting,) * (self.weighting != "softmax")
        return reduction + weighting + (f"t{self.temperature:g}",) * (self.temperature != 1.0)

    def pick(self, rollouts: ScoredAnswers) -> Aggregate:
        """The answer with the most weight; `weights` are shares that sum to 1."""
        classes, keys = rollouts.classes, rollouts.keys
        if not keys:
            return Aggregate(None, None, {})
        gathered = gathered_weights(classes[None], self._log_weights(rollouts)[None], len(keys))[0]  # (C,)
        winner = int((gathered >= gathered.max() * (1 - TIE)).argmax())
        index = int((classes == winner).argmax())
        shares = dict(zip(keys, (gathered / gathered.sum()).tolist(), strict=True))
        return Aggregate(rollouts.answers[index], index, shares)

    def expectation(
        self, rollouts: ScoredAnswers, correct: Sequence[bool], ks: Sequence[int], rng_key: int
    ) -> list[float]:
        """Mean over all k-subsets where they can be listed, else over drawn ones."""
        credit, log_weights = rollouts.credit(correct), self._log_weights(rollouts)
        if not credit.any():
            return [0.0] * len(ks)
        gathered, ends = _gathered_in_subsets(rollouts.classes, log_weights, len(credit), ks, rng_key)
        shares = _shares_of_credit(gathered, credit)
        return [float(shares[first:end].mean()) for first, end in pairwise((0, *ends))]

    def _log_weights(self, rollouts: ScoredAnswers) -> np.ndarray:
        scaled = rollouts.scores / self.temperature
        return scaled if self.weighting == "softmax" else -np.logaddexp(0.0, -scaled)  # log sigmoid


def _shares_of_credit(gathered: np.ndarray, credit: np.ndarray) -> np.ndarray:
    """What the choice from each subset is worth (S,): the mean credit (C,) of the classes that gathered the most (C, S)."""
    most = gathered.max(0)
    winners = gathered >= most * (1 - TIE)
    first, *others = np.flatnonzero(credit)
    worth: np.ndarray = credit[first] * winners[first]
    for c in others:
        worth += credit[c] * winners[c]
    if most.min() == 0:
        worth[most == 0] = 0.0  # subsets without a voter
    if np.count_nonzero(winners) > len(most):  # somewhere several are tied
        worth /= winners.view(np.int8).sum(0, dtype=np.int16)
    return worth


def _gathered_in_subsets(
    classes: np.ndarray, log_weights: np.ndarray, num_classes: int, ks: Sequence[int], rng_key: int
) -> tuple[np.ndarray, list[int]]:
    """The weights (C, S) of the answer classes in the subsets of every k, one k after the other, and where each k ends.

    Weights are up to a factor a subset. Where every voter has a score, and none is lost beside the largest, they are made once
    for all subsets: a product of matrices sums those that are listed, running sums along the permutations those that are drawn.
    """
    voters = np.flatnonzero(classes >= 0)
    voted = log_weights[voters]
    parts: list[np.ndarray]
    if not (np.isfinite(voted).all() and np.ptp(voted) < _RANGE):
        rows = subsets(len(classes), ks, rng_key)  # (S, k) for every k
        parts = [gathered_weights(classes[one], log_weights[one], num_classes).T for one in rows]
    else:
        weights = np.zeros((num_classes, len(classes)))
        weights[classes[voters], voters] = np.exp(voted - voted.max())
        if all(is_listed(len(classes), k) for k in ks):
            members, ends = listed_members(len(classes), tuple(ks))
            return weights @ members, ends
        drawn = sorted({k for k in ks if not is_listed(len(classes), k)})
        sums = dict(zip(drawn, _running_sums(classes, weights.sum(0), num_classes, drawn, rng_key), strict=True))
        parts = [sums[k] if k in sums else weights @ listed_members(len(classes), (k,))[0] for k in ks]
    return np.concatenate(parts, axis=1), np.cumsum([part.shape[1] for part in parts]).tolist()


def _running_sums(
    classes: np.ndarray, weights: np.ndarray, num_classes: int, ks: Sequence[int], rng_key: int
) -> np.ndarray:
    """Weights (K, C, S) of the classes in the first k rollouts of each drawn permutation, for ascending ks."""
    order = permutations(len(classes), rng_key)[:, : ks[-1]]  # (S, largest k)
    num_drawn = len(order)
    portion = np.searchsorted(ks, np.arange(ks[-1]), side="right")  # of each place: the first k that has it
    rows = portion * num_classes + np.maximum(classes, 0)[order]  # the weight of what never votes is 0
    cells = rows * num_drawn + np.arange(num_drawn)[:, None]
    shape = (len(ks), num_classes, num_drawn)
    summed = np.bincount(cells.ravel(), weights=weights[order].ravel(), minlength=math.prod(shape))
    return summed.reshape(shape).cumsum(0)


def gathered_weights(classes: np.ndarray, log_weights: np.ndarray, num_classes: int) -> np.ndarray:
    """Sum the weights of each answer class in each subset, scaled so that the largest single weight of a subset is 1.

    Args:
        classes: (S, k) class of each rollout of each subset, -1 where it never votes.
        log_weights: (S, k) log weight, -inf for none.
        num_classes: C.

    Returns:
        (S, C) float64; all zero in a subset without a voter.
    """
    voters = classes >= 0
    log_weights = np.where(voters, log_weights, -np.inf)
    largest = log_weights.max(1, keepdims=True)  # (S, 1)
    unscored = np.isneginf(largest)
    weights = np.exp(np.where(unscored, 0.0, log_weights) - np.where(unscored, 0.0, largest)) * voters
    cells = np.arange(len(classes))[:, None] * num_classes + np.where(voters, classes, 0)
    summed = np.bincount(cells.ravel(), weights=weights.ravel(), minlength=len(classes) * num_classes)
    return summed.reshape(len(classes), num_classes)
