"""From records to the numbers of an evaluation: every metric is a function of the records on disk.

A run feeds each record here once, when it is written or, in a resumed run, when it is read back: both take the same way, so
the numbers of a run that was killed are those of one that was not.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torchmetrics import Metric, SumMetric

from latent_tts.aggregation import Aggregation, MajorityVoting, k_grid
from latent_tts.evaluation.records import Record, rounded
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

ROLLOUTS = Strategy("rollouts", kind="coverage")
"""The token steps of k rollouts before anything is done with them."""


def record_scores(record: Record) -> tuple[Tensor | None, Tensor | None]:
    """Step scores (N, T) of a record, 0 where masked, and their mask; None where no reward model scored the rollouts."""
    rows = [rollout.step_scores for rollout in record.rollouts if rollout.step_scores is not None]
    if not rows:
        return None, None
    lengths = torch.tensor([len(row) for row in rows])
    scores = torch.nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=torch.float64) for row in rows], batch_first=True)
    return scores, torch.arange(scores.shape[1]) < lengths[:, None]


def choose(record: Record, aggregations: Sequence[Aggregation]) -> dict[str, float | None]:
    """The answer of every aggregation for a record: its field `chosen`."""
    answers = [rollout.answer for rollout in record.rollouts]
    scores, mask = record_scores(record)
    return {part.name: part.choose(answers, scores, mask).answer for part in aggregations}


def accuracy_values(record: Record, aggregations: Sequence[Aggregation], ks: Sequence[int]) -> dict[Strategy, float]:
    """How good every strategy is on one problem: 0 or 1, or its expectation over the k-subsets of the rollouts."""
    answers = [rollout.answer for rollout in record.rollouts]
    correct = [rollout.correct for rollout in record.rollouts]
    scores, mask = record_scores(record)
    key = int.from_bytes(blake2b(record.problem_id.encode(), digest_size=7).digest(), "little")
    values = {GREEDY: float(record.greedy.correct), SINGLE: sum(correct) / len(correct)}
    if record.written is not None:
        values[WRITTEN] = float(record.written.correct)
    for part in aggregations:
        expected = part.expected_accuracy(answers, correct, scores, mask, ks, key)
        values |= {of_aggregation(part, k): value for k, value in zip(ks, expected, strict=True)}
    return values


def token_step_values(record: Record, aggregations: Sequence[Aggregation], ks: Sequence[int]) -> dict[Strategy, float]:
    """Compute of every strategy on one problem, in positions that went through a model; for k of N rollouts its expectation.

    Strategies that need scores pay for the reward model's positions too.
    """
    steps, num_rollouts = record.token_steps, len(record.rollouts)
    drawn = [_cost_of_subset(steps.rollouts, steps.rollouts_shared, k / num_rollouts) for k in ks]
    scored = [_cost_of_subset(steps.reward, steps.reward_shared, k / num_rollouts) for k in ks]
    values = {GREEDY: float(steps.greedy)} | {ROLLOUTS.at(k): cost for k, cost in zip(ks, drawn, strict=True)}
    if record.written is not None:
        values[WRITTEN] = float(record.written.token_steps)
    answers = [rollout.answer for rollout in record.rollouts]
    for part in aggregations:
        spent = part.rollouts_spent(answers, ks)
        costs = [_cost_of_subset(steps.rollouts, steps.rollouts_shared, k / num_rollouts) for k in spent]
        if part.needs_scores:
            costs = [a + b for a, b in zip(costs, scored, strict=True)]
        values |= {of_aggregation(part, k): cost for k, cost in zip(ks, costs, strict=True)}
    return values


def _cost_of_subset(total: int, shared: int, share: float) -> float:
    """What is shared is paid once, of the rest the share of the rollouts."""
    return shared + share * (total - shared)


class EvaluationMetrics:
    """Streams records into torchmetrics of fixed size and turns them into the content of metrics.json.

    States live on the CPU in float64 whatever the model runs in; `compute` sums them over ranks on the device it is given.

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
        self.num_rollouts, self.ks = num_rollouts, k_grid(num_rollouts) if ks is None else list(ks)
        self.aggregations, self.searches = list(aggregations), list(searches)
        self.answers = [GREEDY, WRITTEN] if written else [GREEDY]  # one answer a problem
        curves = [of_aggregation(part, k) for part in aggregations for k in self.ks]
        finals = [of_aggregation(part, num_rollouts) for part in aggregations]
        self.baseline = of_aggregation(BASELINE, num_rollouts)
        compared = [one for one in (*self.answers, SINGLE, *finals, *searches) if one != self.baseline]
        self.coverage = Coverage(self.ks)
        self.accuracy = Accuracy([*self.answers, SINGLE, *curves, *searches])
        self.difference = PairedDifference(compared if self.baseline in finals else [])
        self.token_steps = MeanCost([*self.answers, *(ROLLOUTS.at(k) for k in self.ks), *curves, *searches])
        self.diversity = Diversity(num_latents)
        self.invalid, self.problems = InvalidAnswerRate(), ProblemSetFingerprint()
        self.count, self.nonfinite = SumMetric(), SumMetric()

    @property
    def num_problems(self) -> int:
        """Problems this process has counted."""
        return int(self.count.sum_value)

    def update(self, record: Record) -> dict[Strategy, float]:
        """Counts one problem; how good every strategy is on it."""
        accuracy = accuracy_values(record, self.aggregations, self.ks)
        cost = token_step_values(record, self.aggregations, self.ks)
        for search in self.searches:
            found = record.search[search.key]
            accuracy[search], cost[search] = float(found.correct), float(found.token_steps)
        self.coverage.update(torch.tensor([[rollout.correct for rollout in record.rollouts]]))
        self.accuracy.update(_row(accuracy, self.accuracy.columns))
        if self.difference.columns:
            baseline = torch.tensor([accuracy[self.baseline]], dtype=torch.float64)
            self.difference.update(_row(accuracy, self.difference.columns), baseline)
        self.token_steps.update(_row(cost, self.token_steps.columns))
        per_step = [math.nan if value is None else value for value in record.diversity]
        self.diversity.update(torch.tensor([per_step], dtype=torch.float64))
        self.invalid.update([[rollout.answer for rollout in record.rollouts]])
        self.problems.update(record.problem_id, record.question, record.gold)
        self.count.update(1)
        self.nonfinite.update(sum(not rollout.finite for rollout in record.rollouts))
        return accuracy

    def so_far(self) -> dict[Strategy, Interval]:
        """Accuracy of every strategy at its full budget, and coverage, over the problems of this process."""
        found = self.accuracy.so_far()
        finals = [of_aggregation(part, self.num_rollouts) for part in self.aggregations]
        shown = {one: found[one] for one in (*self.answers, SINGLE, *finals, *self.searches)}
        return shown | {COVERAGE.at(self.num_rollouts): self.coverage.so_far()[self.num_rollouts]}

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
        parts: list[Metric] = [self.coverage, self.accuracy, self.difference, self.token_steps]
        parts += [self.diversity, self.invalid, self.problems, self.count, self.nonfinite]
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        results: list[Any] = []
        for part in parts:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The ``compute`` method of metric")  # of a rank that had no problem
                results.append(part.to(device if together else "cpu").compute())
            part.to("cpu")
        return results

    def _head_room(self, accuracy: dict[Strategy, Interval], coverage: float) -> dict[str, float | None]:
        """Of aggregations over all rollouts by method, of searches by key."""
        finals = {part.name: of_aggregation(part, self.num_rollouts) for part in self.aggregations}
        single = accuracy[SINGLE].mean
        return {
            key: head_room_recovered(accuracy[one].mean, single, coverage)
            for key, one in (finals | {search.key: search for search in self.searches}).items()
        }


def _row(values: dict[Strategy, float], columns: Sequence[Strategy]) -> Tensor:
    return torch.tensor([[values[column] for column in columns]], dtype=torch.float64)  # (1, K)


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
