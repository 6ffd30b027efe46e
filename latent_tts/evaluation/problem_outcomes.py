"""What came of one problem: the choice of every strategy, and the filters by which people look for problems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from latent_tts.answers import AnswerRule, answer_key, answers_equal
from latent_tts.evaluation.records import AnswerRecord, Record
from latent_tts.evaluation.results import Metrics, answers, curves, searches
from latent_tts.evaluation.strategies import GREEDY, WRITTEN, Strategy, of_aggregation
from latent_tts.evaluation.summary import BASELINE


@dataclass(frozen=True)
class Choice:
    """The answer of one strategy to one problem."""

    strategy: Strategy
    answer: float | None
    correct: bool
    text: str | None = None
    """What was decoded; None where the strategy picks among the rollouts' answers."""


@dataclass(frozen=True)
class ProblemOutcome:
    """A record beside what every strategy made of it.

    Args:
        record: The problem.
        strategies: Those whose choices are of interest: of the record's `greedy`, `written`, `chosen` and `search`.
        rule: When an answer equals the gold one.
    """

    record: Record
    strategies: Sequence[Strategy]
    rule: AnswerRule = "tolerance"

    @cached_property
    def choices(self) -> list[Choice]:
        """One for each strategy, in their order."""
        return [self._choice(one) for one in self.strategies]

    @cached_property
    def voting(self) -> Choice:
        """Majority voting over all rollouts, whether it is among the strategies or not."""
        found = [choice for choice in self.choices if choice.strategy.method == BASELINE.name]
        if found:
            return found[0]
        answer = BASELINE.choose([rollout.answer for rollout in self.record.rollouts]).answer
        return self._judged(of_aggregation(BASELINE, len(self.record.rollouts)), answer)

    @property
    def num_right(self) -> int:
        """Rollouts whose answer is the gold one."""
        return sum(rollout.correct for rollout in self.record.rollouts)

    @property
    def num_invalid(self) -> int:
        """Rollouts without an answer."""
        return sum(rollout.answer is None for rollout in self.record.rollouts)

    @property
    def filters(self) -> list[str]:
        """The names of `FILTERS` that let this problem through."""
        return [name for name, one in FILTERS.items() if one.lets_through(self)]

    def _choice(self, one: Strategy) -> Choice:
        if one.kind == "aggregation":
            return self._judged(one, self.record.chosen[one.method])
        named = {GREEDY: self.record.greedy, WRITTEN: self.record.written}
        found: AnswerRecord | None = self.record.search.get(one.key) if one.kind == "search" else named[one]
        assert found is not None, f"the record of {self.record.problem_id} has no {one.key}"
        return Choice(one, found.answer, found.correct, found.text)

    def _judged(self, one: Strategy, answer: float | None) -> Choice:
        return Choice(one, answer, answers_equal(answer, self.record.gold, self.rule))


@dataclass(frozen=True)
class Filter:
    """Problems of one kind."""

    label: str
    """For people."""
    lets_through: Callable[[ProblemOutcome], bool]


def _disagree(outcome: ProblemOutcome) -> bool:
    answers = (choice.answer for choice in outcome.choices)
    return len({None if answer is None else answer_key(answer) for answer in answers}) > 1


FILTERS = {
    "all": Filter("all", lambda outcome: True),
    "wrong": Filter("voting wrong", lambda outcome: not outcome.voting.correct),
    "missed": Filter("voting wrong, but covered", lambda outcome: not outcome.voting.correct and outcome.num_right > 0),
    "disagreement": Filter("strategies disagree", _disagree),
    "uncovered": Filter("not covered", lambda outcome: outcome.num_right == 0),
    "invalid": Filter("invalid answers", lambda outcome: outcome.num_invalid > 0),
}
"""Name -> filter, in the order in which they are offered. Covered: at least one rollout is right."""


def chosen_by(metrics: Metrics) -> list[Strategy]:
    """The strategies of the content of metrics.json that answer a problem, aggregations over all rollouts that were drawn.

    These are more than the metrics count where they were made for a smaller k.
    """
    drawn = (metrics.get("evaluated") or {}).get("rollouts_drawn")
    found = {one: ks for one, ks in curves(metrics).items() if one.kind == "aggregation"}
    aggregations = [one.at(drawn or max(ks)) for one, ks in found.items()]
    return [*answers(metrics), *aggregations, *searches(metrics)]


def answer_rule(metrics: Metrics) -> AnswerRule:
    """By which the content of metrics.json was judged."""
    rule: AnswerRule = (metrics.get("evaluated") or {}).get("answer_rule", "tolerance")
    return rule
