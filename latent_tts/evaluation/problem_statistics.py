"""What a run shows problem by problem: whether diversity goes with success, and what withholding answers buys.

Rollouts of a hard problem both differ more and are right less often, so a correlation of diversity with success says little by
itself. Difficulty is accounted for in two ways: by the greedy answer of the same run, and, where other runs on the same problems
are at hand, by the mean success of those, which share neither noise nor sampler with the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latent_tts.answers import answer_key
from latent_tts.evaluation.record_table import Floats, RecordTable
from latent_tts.evaluation.records import Record, rounded
from latent_tts.metrics.intervals import Interval
from latent_tts.metrics.rank_correlation import correlation_interval, partial_rank_correlation, rank_correlation
from latent_tts.metrics.selective_risk import area, risk_curve, risk_interval

PLAIN, GIVEN_GREEDY, GIVEN_OTHERS = "plain", "given_greedy", "given_other_runs"
ROUNDING = 1e-6
"""Diversities that differ by less are those of equal latents: what rounding leaves."""
BY_AGREEMENT = "majority voting, by vote share"
_BESIDE = (-2, -1, 1, 2)
ANSWERED = tuple(share / 10 for share in range(10, 0, -1))
"""Shares of the problems that are answered, at which the risk is told."""


@dataclass(frozen=True)
class Risk:
    """One rule by which answers are withheld."""

    area: float
    """Under the curve of risk against the share answered: the lower, the better."""
    at: Mapping[float, Interval]
    """Share answered -> share of wrong answers among them."""


@dataclass(frozen=True)
class AnswerSet:
    """The gold answer of a problem, and the different answers that its rollouts gave, as `answer_key`s."""

    gold: float
    given: frozenset[float]

    @classmethod
    def of(cls, record: Record) -> AnswerSet:
        """That of a record."""
        given = (rollout.answer for rollout in record.rollouts)
        return cls(answer_key(record.gold), frozenset(answer_key(one) for one in given if one is not None))


def luck(answers: Sequence[AnswerSet]) -> float:
    """Coverage by the rollouts of another problem: the chance that those hold a problem's gold answer, NaN for one problem.

    What a set of answers covers although nothing was thought about the question: a sampler whose rollouts merely spread their
    answers has it close to its own coverage.
    """
    holding = Counter(value for one in answers for value in one.given)
    own = sum(holding[one.gold] - (one.gold in one.given) for one in answers)
    pairs = len(answers) * (len(answers) - 1)
    return own / pairs if pairs else float("nan")


def near_miss(answers: Sequence[AnswerSet]) -> float:
    """Coverage of a number beside the gold answer, 1 or 2 away from it: NaN without problems.

    What a set of answers covers by spreading about the right size: where it is close to the coverage itself, the gold answer is
    hit as its neighbours are.
    """
    hits = [answer_key(one.gold + away) in one.given for one in answers for away in _BESIDE]
    return float(np.mean(hits)) if hits else float("nan")


@dataclass(frozen=True)
class ProblemStatistics:
    """Of one run."""

    num_problems: int
    """Those whose diversity is known."""
    correlations: Mapping[str, Mapping[str, Interval]]
    """Outcome -> what is accounted for -> rank correlation with the diversity of a problem's rollouts."""
    risks: Mapping[str, Risk]
    """By rule."""
    different_answers: float | None = None
    """Mean number of different answers that a problem's rollouts gave."""
    luck: float | None = None
    """Coverage by the rollouts of another problem."""
    near_miss: float | None = None
    """Coverage of a number beside the gold answer."""

    def to_json(self) -> dict[str, Any]:
        """Numbers as they are stored; NaN is null."""
        correlations = {
            outcome: {given: _plain(one) for given, one in found.items()}
            for outcome, found in self.correlations.items()
        }
        risks = {
            rule: {"area": risk.area, "at": {f"{share:g}": _plain(one) for share, one in risk.at.items()}}
            for rule, risk in self.risks.items()
        }
        found: dict[str, Any] = rounded(
            {
                "num_problems": self.num_problems,
                "different_answers": self.different_answers,
                "luck": self.luck,
                "near_miss": self.near_miss,
                "diversity_and": correlations,
                "risk": risks,
            }
        )
        return found


def _plain(one: Interval) -> dict[str, Any] | None:
    return None if np.isnan(one.mean) else {"mean": one.mean, "interval": [one.low, one.high]}


def problem_statistics(
    table: RecordTable, others: Sequence[RecordTable] = (), answers: Sequence[AnswerSet] = ()
) -> ProblemStatistics:
    """The statistics of a run.

    Args:
        table: Of its records.
        answers: Of its problems, at least two; without, what is read of them is unknown.
        others: Tables of other runs, with the same problems in the same rows.
    """
    known = ~np.isnan(table.diversity)
    outcomes = {"single rollout": _success(table), "coverage": (table.num_right > 0).astype(float)}
    difficulty = {PLAIN: None, GIVEN_GREEDY: table.greedy_right}
    if others:
        difficulty[GIVEN_OTHERS] = np.mean([_success(one) for one in others], axis=0)
    correlations = {
        name: {given: _correlation(table, success, known, accounted) for given, accounted in difficulty.items()}
        for name, success in outcomes.items()
    }
    risks = {name: _risk(*rule) for name, rule in withholding_rules(table).items()}
    spread = float(np.mean([len(one.given) for one in answers])) if answers else None
    chance = luck(answers) if len(answers) > 1 else None
    beside = near_miss(answers) if answers else None
    return ProblemStatistics(int(known.sum()), correlations, risks, spread, chance, beside)


def withholding_rules(table: RecordTable) -> dict[str, tuple[Floats, Floats]]:
    """Rule -> how sure it is of each problem's answer, and how right that is; empty where all problems have one rollout."""
    if table.num_problems < 2 or table.num_rollouts.max() < 2:
        return {}
    rules = {BY_AGREEMENT: (table.vote_share, table.vote_right)}
    if table.scored and not np.isnan(table.best_score).any():
        rules["weighted voting, by share of weight"] = (table.weighted_share, table.weighted_right)
        rules["best-of-N, by its score"] = (table.best_score, table.best_right)
    return rules


def _success(table: RecordTable) -> Floats:
    share: Floats = table.num_right / table.num_rollouts
    return share


def _correlation(table: RecordTable, success: Floats, known: Any, accounted: Floats | None) -> Interval:
    diversity, success = table.diversity[known], success[known]
    if not len(success) or np.ptp(diversity) < ROUNDING:
        return Interval(np.nan, np.nan, np.nan)
    if accounted is None:
        return correlation_interval(rank_correlation(diversity, success), len(success))
    return correlation_interval(partial_rank_correlation(diversity, success, accounted[known]), len(success), 1)


def _risk(confidence: Floats, right: Floats) -> Risk:
    return Risk(
        area(risk_curve(confidence, right)), {share: risk_interval(confidence, right, share) for share in ANSWERED}
    )
