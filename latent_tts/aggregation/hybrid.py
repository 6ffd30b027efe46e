"""Hybrid: rank by score, then vote among the best.

Of the k rollouts, those with an answer are ranked by reduced score; the best `keep` share of them (rounded up) vote,
one vote each; ties go to the answer whose best-ranked rollout is better. This is the vote among the top-ranked
solutions of Cobbe et al. 2021 (arXiv 2110.14168, section 4.3), where a verifier first discards what it trusts least and
the vote then averages out its errors. `keep` = 1 is majority voting with ties broken by score; a tiny `keep` is
best-of-N over parsed answers.

Score ties: the lowest rollout index ranks first. A None never votes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from latent_tts.aggregation.base import Aggregate, ScoredAggregation, ScoredAnswers, score_order
from latent_tts.aggregation.subsets import is_listed, listed, subsets
from latent_tts.errors import UserError


@dataclass(frozen=True)
class Hybrid(ScoredAggregation):
    """Majority voting among the best-scored rollouts."""

    keep: float = 0.5
    """The share of the rollouts with an answer that vote, in (0, 1]."""

    family = "hybrid"
    label = "hybrid"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep <= 1:
            raise UserError(f"hybrid aggregation has keep = {self.keep}: it must be in (0, 1]")

    @property
    def options(self) -> tuple[str, ...]:
        """See `Named.options`."""
        return (self.reduction,) * (self.reduction != "sum") + (f"keep{self.keep:g}",) * (self.keep != 0.5)

    def pick(self, rollouts: ScoredAnswers) -> Aggregate:
        """The winner among the kept; `weights` are their votes, `index` its best rollout."""
        keys, order = rollouts.keys, score_order(rollouts.scores)
        if not keys:
            return Aggregate(None, None, {})
        place, votes = vote_among_best(rollouts.classes[order][None], self.keep, len(keys))
        index, counts = int(order[place[0]]), zip(keys, votes[0], strict=True)
        return Aggregate(rollouts.answers[index], index, {key: float(count) for key, count in counts if count})

    def expectation(
        self, rollouts: ScoredAnswers, correct: Sequence[bool], ks: Sequence[int], rng_key: int
    ) -> list[float]:
        """Mean over all k-subsets where they can be listed, else over drawn ones."""
        credit = np.append(rollouts.credit(correct), 0.0)  # class -1, no voter at all, is worth 0
        if not credit.any():
            return [0.0] * len(ks)
        ranked = rollouts.classes[score_order(rollouts.scores)]
        voters, accuracy = ranked[ranked >= 0], []
        kept = _KeptVoters(voters, credit)
        for k in ks:
            if k == len(ranked):
                accuracy.append(kept.worth_of_best(math.ceil(self.keep * len(voters) - 1e-9)))
                continue
            if _fewer_when_kept(len(voters), len(ranked), k, self.keep):
                accuracy.append(_exact_accuracy(kept, len(ranked), k, self.keep))
                continue
            (places,) = subsets(len(ranked), [k], rng_key)  # (S, k) in the ranking, ascending: best first
            drawn = ranked[places]
            winner, _ = vote_among_best(drawn, self.keep, len(credit) - 1)
            accuracy.append(float(credit[drawn[np.arange(len(drawn)), winner]].mean()))
        return accuracy


class _KeptVoters:
    """What the vote of every set of q of the voters is worth; of a q that several k ask for, made once.

    Args:
        voters: (V,) classes of the rollouts that vote, best-scored first.
        credit: (C + 1,) of each class.
    """

    def __init__(self, voters: np.ndarray, credit: np.ndarray) -> None:
        self.voters, self.credit = voters, credit
        self._worth: dict[int, np.ndarray] = {}

    def worth(self, q: int) -> np.ndarray:
        """(S,) credit of the winner in each set, in the order of `listed`."""
        if q not in self._worth:
            self._worth[q] = self._made(q)
        return self._worth[q]

    def worth_of_best(self, q: int) -> float:
        """Credit of the winner among the q best."""
        best = self.voters[:q]
        return float(self.credit[best[np.bincount(best)[best].argmax()]])  # the best-ranked among the most voted

    def _made(self, q: int) -> np.ndarray:
        kept = self.voters[listed(len(self.voters), q)]  # (S, q)
        winner = np.zeros(len(kept), dtype=np.int64)  # of two voters the better wins, agreed or tied
        if q > 2:
            cells = np.arange(len(kept))[:, None] * len(self.credit) + kept
            votes = np.bincount(cells.ravel(), minlength=len(kept) * len(self.credit))[
                cells
            ]  # (S, q) of each one's class
            winner = votes.argmax(1)  # the best-ranked among the most voted
        worth: np.ndarray = self.credit[kept[np.arange(len(kept)), winner]]
        return worth


def _exact_accuracy(kept: _KeptVoters, num_rollouts: int, k: int, keep: float) -> float:
    """Mean credit over all k-subsets, by the sets of voters that are kept: far fewer, each counted as often as it comes.

    Of a subset with v of the V voters the best q = ceil(keep v) are kept. A set of q voters, whose worst is at place p of the
    ranking, is what is kept of C(V - 1 - p, v - q) C(N - V, k - v) subsets.

    Args:
        kept: Of the voters.
        num_rollouts: N.
        k: Size of the subsets.
        keep: See `Hybrid`.
    """
    num_voters = len(kept.voters)
    total, times = 0.0, _times_kept(num_voters, num_rollouts, k, keep)
    for q, count in times.items():
        total += float((kept.worth(q) * count[listed(num_voters, q)[:, -1]]).sum())
    return total / math.comb(num_rollouts, k)


def _quotas(num_voters: int, num_rollouts: int, k: int, keep: float) -> dict[int, int]:
    """How many are kept of the v voters of a subset, for every v there can be."""
    least = max(1, k - (num_rollouts - num_voters))
    return {v: math.ceil(keep * v - 1e-9) for v in range(least, min(k, num_voters) + 1)}


@lru_cache(maxsize=4096)
def _fewer_when_kept(num_voters: int, num_rollouts: int, k: int, keep: float) -> bool:
    """Whether the k-subsets can be listed, and the sets that are kept of them are no more."""
    num_subsets = math.comb(num_rollouts, k)
    quotas = set(_quotas(num_voters, num_rollouts, k, keep).values())
    return is_listed(num_rollouts, k) and all(math.comb(num_voters, q) <= num_subsets for q in quotas)


@lru_cache(maxsize=4096)
def _times_kept(num_voters: int, num_rollouts: int, k: int, keep: float) -> dict[int, np.ndarray]:
    """By q, of how many k-subsets a set of q voters is kept whose worst is at each place: (V,), to be read only."""
    times: dict[int, np.ndarray] = {}
    for v, q in _quotas(num_voters, num_rollouts, k, keep).items():
        rest = math.comb(num_rollouts - num_voters, k - v)
        ways = np.array([math.comb(num_voters - 1 - p, v - q) * rest for p in range(num_voters)], dtype=np.float64)
        times[q] = times[q] + ways if q in times else ways
    return times


def vote_among_best(classes: np.ndarray, keep: float, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Vote among the first `keep` share of the voters of each subset.

    Args:
        classes: (S, k) class of each rollout, best-scored first, -1 where it never votes.
        keep: share of the voters that are kept, rounded up.
        num_classes: C.

    Returns:
        place: (S,) the place in 0..k-1 of the best-scored rollout of the winning class (that of a None where
            nobody votes).
        votes: (S, C) votes of the kept.
    """
    voters = classes >= 0
    quota = np.ceil(keep * voters.sum(1, keepdims=True) - 1e-9)
    kept = voters & (np.cumsum(voters, axis=1) <= quota)  # (S, k)
    cells = np.arange(len(classes))[:, None] * num_classes + np.where(kept, classes, 0)
    votes = np.bincount(cells.ravel(), weights=kept.ravel(), minlength=len(classes) * num_classes)
    own_votes = np.where(kept, votes[cells], -1.0)
    return own_votes.argmax(1), votes.reshape(len(classes), num_classes)  # argmax: the best-ranked among the most voted
