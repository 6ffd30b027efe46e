"""Adaptive voting: rollouts are drawn in portions, until the vote of the problem is settled (arXiv 2305.11860).

After each portion the two answers with the most votes, v1 >= v2, are compared. If each vote for one of the two went to the leader
with an unknown probability p, uniform before, then p ~ Beta(v1 + 1, v2 + 1) now, and the vote is settled when

    P(p > 1/2) = P(B <= v1) >= confidence,    B ~ Binomial(v1 + v2 + 1, 1/2)

A None never votes. The majority of what was drawn is the answer: when to stop and what to answer are read off the same rollouts,
which come in an order that knows nothing of them, so accuracy and spent rollouts are those of a user who draws one by one.

Here the rule is replayed on rollouts that are there; `latent_tts.search.AdaptiveRollouts` draws by it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from latent_tts.aggregation.base import Aggregate, Aggregation, ScoredAnswers
from latent_tts.aggregation.majority_voting import MajorityVoting
from latent_tts.answers import answer_key
from latent_tts.errors import UserError


@dataclass(frozen=True)
class StoppingRule:
    """When a problem's vote is settled.

    Raises:
        UserError: A confidence that is none, or a portion below 1.
    """

    confidence: float = 0.95
    """Posterior probability that the leader is ahead of the second, at which drawing ends; above 0.5 and below 1."""
    portion: int = 4
    """Rollouts that are drawn at a time."""

    def __post_init__(self) -> None:
        if not 0.5 < self.confidence < 1:
            raise UserError(f"confidence must lie between 0.5 and 1, both excluded, got {self.confidence}.")
        if self.portion < 1:
            raise UserError(
                f"portion must be at least 1, got {self.portion}: it is the number of rollouts drawn at a time."
            )

    @property
    def options(self) -> tuple[str, ...]:
        """What differs from the defaults."""
        changed = (f"c{self.confidence:g}",) * (self.confidence != 0.95)
        return changed + (f"by{self.portion}",) * (self.portion != 4)

    def settled(self, answers: Sequence[float | None]) -> bool:
        """Whether these answers of a problem settle its vote."""
        return self._settled_by(Counter(answer_key(answer) for answer in answers if answer is not None))

    def stop(self, answers: Sequence[float | None]) -> int:
        """How many of the rollouts, in their order, are drawn: all where the vote is never settled."""
        votes: Counter[float] = Counter()
        for end in range(self.portion, len(answers), self.portion):
            votes.update(answer_key(answer) for answer in answers[end - self.portion : end] if answer is not None)
            if self._settled_by(votes):
                return end
        return len(answers)

    def _settled_by(self, votes: Counter[float]) -> bool:
        leader, second = [*sorted(votes.values(), reverse=True), 0, 0][:2]
        return probability_ahead(leader, second) >= self.confidence


@dataclass(frozen=True)
class AdaptiveVoting(StoppingRule, Aggregation):
    """Majority voting over the first rollouts, as many as the stopping rule asks for. Needs no scores.

    At k it is what a budget of at most k rollouts gives, on the first k in their order: one draw, not a mean over subsets.
    """

    family = "adaptive_voting"
    label = "adaptive voting"
    by_default: ClassVar[bool] = False

    def pick(self, rollouts: ScoredAnswers) -> Aggregate:
        """The majority of the rollouts up to the stop."""
        return MajorityVoting().choose(rollouts.answers[: self.stop(rollouts.answers)])

    def expectation(
        self, rollouts: ScoredAnswers, correct: Sequence[bool], ks: Sequence[int], rng_key: int
    ) -> list[float]:
        """Whether the choice among the first k is right, for every k."""
        stop = self.stop(rollouts.answers)
        chosen = [MajorityVoting().choose(rollouts.answers[: min(k, stop)]).index for k in ks]
        return [float(index is not None and correct[index]) for index in chosen]

    def rollouts_spent(self, answers: Sequence[float | None], ks: Sequence[int]) -> list[float]:
        """The stop among the first k, for every k."""
        stop = self.stop(answers)
        return [float(min(k, stop)) for k in ks]


@lru_cache(maxsize=4096)
def probability_ahead(leader: int, second: int) -> float:
    """P(p > 1/2) for p ~ Beta(leader + 1, second + 1), exactly, by the binomial sum.

    >>> probability_ahead(4, 0)
    0.96875
    """
    trials = leader + second + 1
    below: int = sum(math.comb(trials, j) for j in range(leader + 1))
    return below / (1 << trials)
