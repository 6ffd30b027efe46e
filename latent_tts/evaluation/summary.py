"""From records to the numbers of an evaluation: every metric is a function of the records on disk.

A run feeds each record here once, when it is written or, in a resumed run, when it is read back: both take the same way, so
the numbers of a run that was killed are those of one that was not.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Self

import torch
import torch.distributed
from torch import Tensor
from torchmetrics import Metric, SumMetric

from latent_tts.aggregation import Aggregation, MajorityVoting, k_grid
from latent_tts.evaluation.problem_values import PORTION, ROLLOUTS, curve_values, curves_of, token_step_values
from latent_tts.evaluation.records import AnswerRecord, Record, rounded
from latent_tts.evaluation.strategies import (
    COVERAGE,
    GREEDY,
    SINGLE,
    WRITTEN,
    Strategy,
    of_aggregation,
    strategies_to_json,
)
from latent_tts.metrics.accuracy import Accuracy, MeanCost, PairedDifference
from latent_tts.metrics.coverage import Coverage
from latent_tts.metrics.diversity import Diversity
from latent_tts.metrics.head_room import head_room_recovered
from latent_tts.metrics.intervals import Interval
from latent_tts.metrics.invalid_answers import InvalidAnswerRate
from latent_tts.metrics.problem_set import ProblemSetFingerprint

BASELINE = MajorityVoting()
"""What other strategies are compared with, problem by problem."""


class RunningMetrics:
    """What is shown of a run while it goes on: accuracy of every strategy, coverage, and the rate of invalid answers.

    States are torchmetrics of fixed size on the CPU, in exact sums or float64 whatever the model runs in.

    Args:
        num_rollouts: N.
        aggregations: What is done with the N rollouts.
        searches: The searches of each record.
        written: Whether each record holds the answer of a model that reasons in writing.
        ks: Numbers of rollouts at which curves are reported, up to N; None takes `k_grid`.
    """

    def __init__(
        self,
        num_rollouts: int,
        aggregations: Sequence[Aggregation],
        searches: Sequence[Strategy] = (),
        written: bool = False,
        ks: Sequence[int] | None = None,
    ) -> None:
        self.num_rollouts, self.ks = num_rollouts, k_grid(num_rollouts) if ks is None else list(ks)
        self.aggregations, self.searches = list(aggregations), list(searches)
        self.answers = [GREEDY, WRITTEN] if written else [GREEDY]  # one answer a problem
        self.curves = curves_of(self.aggregations, self.ks)
        self.finals = [of_aggregation(part, num_rollouts) for part in aggregations]
        self.coverage = Coverage(self.ks)
        self.accuracy = Accuracy([*self.answers, SINGLE, *self.curves, *searches])
        self.invalid, self.count = InvalidAnswerRate(), SumMetric()

    @property
    def num_problems(self) -> int:
        """Problems this process has counted."""
        return int(self.count.sum_value)

    def update(self, *records: Record) -> Tensor:
        """Counts problems, which takes less time for several at once.

        Returns:
            (P, K) how good every strategy is on each, 0 or 1 or an expectation; the columns are those of `accuracy`.
        """
        if not records:
            return torch.empty(0, len(self.accuracy.columns), dtype=torch.float64)
        accuracy = torch.tensor(self._accuracy(records), dtype=torch.float64)
        self.accuracy.update(accuracy)
        self.coverage.update(torch.tensor([[one.correct for one in record.rollouts] for record in records]))
        self.invalid.update([[one.answer for one in record.rollouts] for record in records])
        self.count.update(len(records))
        return accuracy

    def count_all(
        self, records: Iterable[Record], see: Callable[[Record, dict[Strategy, float]], None] | None = None
    ) -> Self:
        """Counts any number of records in memory for a few; `see` is handed each with how good every strategy is on it."""
        remaining = iter(records)
        while portion := list(islice(remaining, PORTION)):
            accuracy = self.update(*portion)
            if see is not None:
                for record, values in zip(portion, accuracy.tolist(), strict=True):
                    see(record, dict(zip(self.accuracy.columns, values, strict=True)))
        return self

    def choosing(self, drawn: int) -> list[Strategy]:
        """The strategies that answer a problem, aggregations over all rollouts that were drawn.

        As `problem_outcomes.chosen_by` finds them in the content of metrics.json.
        """
        return [*self.answers, *(of_aggregation(part, drawn) for part in self.aggregations), *self.searches]

    def so_far(self) -> dict[Strategy, Interval]:
        """Accuracy of every strategy at its full budget, and coverage, over the problems of this process."""
        found = self.accuracy.so_far()
        shown = {one: found[one] for one in (*self.answers, SINGLE, *self.finals, *self.searches)}
        return shown | {COVERAGE.at(self.num_rollouts): self.coverage.so_far()[self.num_rollouts]}

    def _accuracy(self, records: Sequence[Record]) -> list[list[float]]:
        curves = curve_values(records, self.aggregations, self.ks)
        return [self._accuracy_row(record, values) for record, values in zip(records, curves, strict=True)]

    def _accuracy_row(self, record: Record, curves: Sequence[float]) -> list[float]:
        single = sum(one.correct for one in record.rollouts) / len(record.rollouts)
        searched = (float(record.search[search.key].correct) for search in self.searches)
        return [*(float(one.correct) for one in self._answers(record)), single, *curves, *searched]

    def _answers(self, record: Record) -> list[AnswerRecord]:
        """Those of `answers`, but for what they cost."""
        found = [record.greedy, record.written] if WRITTEN in self.answers else [record.greedy]
        return [one for one in found if one is not None]


class EvaluationMetrics(RunningMetrics):
    """Streams records into torchmetrics of fixed size and turns them into the content of metrics.json.

    `compute` sums the states over ranks on the device it is given.

    Args:
        num_rollouts: N.
        num_latents: T, the largest number of latents a rollout can have.
        aggregations: What is done with the N rollouts.
        searches: The searches of each record.
        written: Whether each record holds the answer of a model that reasons in writing.
        ks: Numbers of rollouts at which curves are reported, up to N; None takes `k_grid`.
    """

    def __init__(
        self,
        num_rollouts: int,
        num_latents: int,
        aggregations: Sequence[Aggregation],
        searches: Sequence[Strategy] = (),
        written: bool = False,
        ks: Sequence[int] | None = None,
    ) -> None:
        super().__init__(num_rollouts, aggregations, searches, written, ks)
        self.baseline = of_aggregation(BASELINE, num_rollouts)
        compared = [one for one in (*self.answers, SINGLE, *self.finals, *searches) if one != self.baseline]
        self.difference = PairedDifference(compared if self.baseline in self.finals else [])
        self.token_steps = MeanCost([*self.answers, *(ROLLOUTS.at(k) for k in self.ks), *self.curves, *searches])
        self.diversity, self.problems = Diversity(num_latents), ProblemSetFingerprint()
        self.nonfinite = SumMetric()

    def update(self, *records: Record) -> Tensor:
        """See `RunningMetrics.update`."""
        accuracy = super().update(*records)
        if not records:
            return accuracy
        if self.difference.columns:
            place = {one: number for number, one in enumerate(self.accuracy.columns)}
            compared = [place[one] for one in self.difference.columns]
            self.difference.update(accuracy[:, compared], accuracy[:, place[self.baseline]])
        self.token_steps.update(torch.tensor([self._cost(record) for record in records], dtype=torch.float64))
        self.diversity.update(_diversities(records))
        self.problems.update((record.problem_id, record.question, record.gold) for record in records)
        self.nonfinite.update(sum(not one.finite for record in records for one in record.rollouts))
        return accuracy

    def extend(self, other: EvaluationMetrics) -> None:
        """Adds what other metrics of the same strategies have counted."""
        for part, more in zip(self._parts, other._parts, strict=True):
            part.merge_state(more)

    @property
    def _parts(self) -> list[Metric]:
        parts: list[Metric] = [self.coverage, self.accuracy, self.difference, self.token_steps]
        return [*parts, self.diversity, self.invalid, self.problems, self.count, self.nonfinite]

    def _cost(self, record: Record) -> list[float]:
        written = [] if record.written is None or WRITTEN not in self.answers else [record.written.token_steps]
        searched = (record.search[search.key].token_steps for search in self.searches)
        return [record.token_steps.greedy, *written, *token_step_values(record, self.aggregations, self.ks), *searched]

    def compute(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        """The content of metrics.json but for the throughput, summed over ranks; a collective where there are several."""
        coverage, accuracy, difference, cost, diversity, invalid, problems, count, nonfinite = self._over_ranks(device)
        covered = {COVERAGE.at(k): interval for k, interval in coverage.items()}
        summary = {
            "problems_fingerprint": problems,
            "num_problems": int(count),
            "num_rollouts": self.num_rollouts,
            "invalid_answer_rate": float(invalid),
            "nonfinite_rollouts": int(nonfinite),
            "strategies": strategies_to_json([*covered, *accuracy]),
            "coverage": {str(k): interval.mean for k, interval in coverage.items()},
            "accuracy": _nested((one, interval.mean) for one, interval in accuracy.items()),
            "confidence_interval": {one.key: _bounds(interval) for one, interval in (covered | accuracy).items()},
            "difference_to_majority_voting": {
                one.key: {"mean": interval.mean, "interval": _bounds(interval)} for one, interval in difference.items()
            },
            "head_room_recovered": self._head_room(accuracy, coverage[self.num_rollouts].mean),
            "diversity": {"mean": float(diversity["mean"]), "per_step": diversity["per_step"].tolist()},
            "token_steps": _nested(cost.items()),
        }
        finite: dict[str, Any] = rounded(_finite(summary))
        return finite

    def _over_ranks(self, device: torch.device | str) -> list[Any]:
        """Results of all parts; where ranks exchange their states, they do it on the device."""
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        results: list[Any] = []
        for part in self._parts:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The ``compute`` method of metric")  # of a rank that had no problem
                results.append(part.to(device if together else "cpu").compute())
            part.to("cpu")
        return results

    def _head_room(self, accuracy: dict[Strategy, Interval], coverage: float) -> dict[str, float | None]:
        """Of aggregations over all rollouts by method, of searches by key."""
        finals = dict(zip((part.name for part in self.aggregations), self.finals, strict=True))
        single = accuracy[SINGLE].mean
        return {
            key: head_room_recovered(accuracy[one].mean, single, coverage)
            for key, one in (finals | {search.key: search for search in self.searches}).items()
        }


def _diversities(records: Sequence[Record]) -> Tensor:
    """(P, T), NaN where a step counts nothing."""
    longest = max(len(record.diversity) for record in records)
    filled = [[*record.diversity, *[None] * (longest - len(record.diversity))] for record in records]
    rows = [[math.nan if value is None else value for value in row] for row in filled]
    return torch.tensor(rows, dtype=torch.float64)


def _nested(values: Iterable[tuple[Strategy, float]]) -> dict[str, Any]:
    """{method: value} where a strategy has no budget, {method: {budget: value}} elsewhere."""
    nested: dict[str, Any] = {}
    for strategy, value in values:
        if strategy.budget is None:
            nested[strategy.method] = value
        else:
            nested.setdefault(strategy.method, {})[strategy.budget] = value
    return nested


def _bounds(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


def _finite(value: Any) -> Any:
    """NaN as None, which JSON knows."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value
