"""Runs read problem by problem beside one of them, the baseline: their metrics, and paired differences to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from latent_tts.evaluation.problem_statistics import AnswerSet
from latent_tts.evaluation.record_table import rows_of
from latent_tts.evaluation.records import Record
from latent_tts.evaluation.remake import ReadRun
from latent_tts.evaluation.results import Metrics
from latent_tts.evaluation.strategies import COVERAGE, Strategy
from latent_tts.metrics.accuracy import PairedDifference
from latent_tts.metrics.coverage import coverage_at
from latent_tts.metrics.intervals import Interval

Values = dict[Strategy, float]
Rows = dict[str, dict[str, Any]]
"""Problem id -> `record_table.rows_of`."""
Answers = dict[str, AnswerSet]


@dataclass(frozen=True)
class ReadBeside:
    """What is read of one run: metrics, differences at equal and at full budgets, a row and the answers of every problem."""

    metrics: Metrics
    equal: Mapping[Strategy, Interval]
    full: Mapping[str, Interval]
    rows: Rows
    answers: Answers


class PairedRuns:
    """The baseline's values of every problem, for the others to be compared with."""

    def __init__(self, run: ReadRun, problems: set[str]) -> None:
        self._problems = problems
        self._values: dict[str, Values] = {}
        self._rows: Rows = {}
        self._answers: Answers = {}
        self._ks = run.empty_metrics().ks
        self._metrics = run.metrics(problems, lambda record, values: self._keep(record, values))

    def _keep(self, record: Record, values: Values) -> None:
        self._values[record.problem_id] = values | _coverage(record, self._ks)
        (self._rows[record.problem_id],) = rows_of([record])
        self._answers[record.problem_id] = AnswerSet.of(record)

    def baseline(self) -> ReadBeside:
        """Itself, compared with nothing."""
        return ReadBeside(self._metrics, {}, {}, self._rows, self._answers)

    def compared(self, run: ReadRun) -> ReadBeside:
        """Another run beside it."""
        rows: Rows = {}
        answers: Answers = {}
        ks = run.empty_metrics().ks
        ours = next(iter(self._values.values()))
        theirs: dict[Strategy, None] = {}
        equal: PairedDifference[Strategy] | None = None
        full: PairedDifference[str] | None = None

        def see(record: Record, values: Values) -> None:
            nonlocal equal, full
            values = values | _coverage(record, ks)
            (rows[record.problem_id],) = rows_of([record])
            answers[record.problem_id] = AnswerSet.of(record)
            if equal is None or full is None:
                theirs.update(dict.fromkeys(values))
                equal = PairedDifference([one for one in theirs if one in ours])
                full = PairedDifference([key for key in _at_full(theirs) if key in _at_full(ours)])
            base = self._values[record.problem_id]
            _add(equal, [values[one] - base[one] for one in equal.columns])
            tops, base_tops = _at_full(theirs), _at_full(ours)
            _add(full, [values[tops[key]] - base[base_tops[key]] for key in full.columns])

        metrics = run.metrics(self._problems, see)
        assert equal is not None and full is not None
        return ReadBeside(metrics, equal.compute(), full.compute(), rows, answers)


def _add(metric: PairedDifference[Any], differences: list[float]) -> None:
    metric.update(torch.tensor([differences], dtype=torch.float64), torch.zeros(1, dtype=torch.float64))


def _coverage(record: Record, ks: Sequence[int]) -> Values:
    found = coverage_at(torch.tensor([[rollout.correct for rollout in record.rollouts]]), ks)[0].tolist()
    return {COVERAGE.at(k): value for k, value in zip(ks, found, strict=True)}


def _at_full(strategies: Mapping[Strategy, Any]) -> dict[str, Strategy]:
    """Every strategy at its largest budget, by method (searches by key)."""
    found: dict[str, Strategy] = {}
    for one in strategies:
        held = found.get(full_key(one))
        if held is None or int(one.budget or 0) > int(held.budget or 0):
            found[full_key(one)] = one
    return found


def full_key(strategy: Strategy) -> str:
    return strategy.key if strategy.kind == "search" else strategy.method
