"""What figures and diagnoses need of the records, gathered in one pass: a row a problem, and 9 bytes a rollout of scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latent_tts.aggregation import MajorityVoting
from latent_tts.aggregation.base import answer_classes, class_credits
from latent_tts.aggregation.weighted_voting import TIE, gathered_weights
from latent_tts.evaluation.problem_values import PORTION, alike
from latent_tts.evaluation.records import Record
from latent_tts.metrics.intervals import Interval
from latent_tts.metrics.ranking import pairs_won
from latent_tts.metrics.ratios import ratio_interval

Floats = NDArray[np.float64]

_VOTING = MajorityVoting()
_AT_ONCE = 2**18  # scores that are ranked at a time, which bounds the memory


@dataclass(frozen=True)
class RecordTable:
    """Columns over the P problems and R rollouts of a run. The score of a rollout is that of its last latent thought."""

    num_rollouts: NDArray[np.int64]  # (P,)
    num_right: NDArray[np.int64]  # (P,)
    num_invalid: NDArray[np.int64]  # (P,) rollouts without an answer
    num_alike: NDArray[np.int64]
    """(P,) rollouts that are the first one again: same text, same number of latents, same scores."""
    greedy_right: Floats
    """(P,) 0 or 1."""
    diversity: Floats
    """(P,) mean over the steps, NaN where no step has two rollouts."""
    vote_share: Floats
    """(P,) share of the rollouts that gave the answer of majority voting; 0 where none has an answer."""
    vote_right: Floats
    """(P,) 0 or 1, ties shared."""
    best_score: Floats
    """(P,) of the best-scored rollout; NaN without scores."""
    best_right: Floats  # (P,)
    weighted_share: Floats
    """(P,) share of the weight that the answer of weighted voting gathered; NaN without scores."""
    weighted_right: Floats  # (P,)
    pairs_won: Floats
    """(P, T) pairs of a right and a wrong rollout in which the right one scores higher at a step, a tie is half."""
    pairs: Floats
    """(P, T) such pairs."""
    problem: NDArray[np.int32]
    """(R,) row of a scored rollout's problem."""
    score: NDArray[np.float32]  # (R,)
    correct: NDArray[np.bool_]  # (R,)

    @property
    def num_problems(self) -> int:
        return len(self.num_rollouts)

    @property
    def scored(self) -> bool:
        """Whether a reward model scored the rollouts."""
        return len(self.score) > 0


def table_of(records: Iterable[Record] | RecordTable) -> RecordTable:
    """The table of records, which are gone through once, one at a time; a table is returned as it is."""
    if isinstance(records, RecordTable):
        return records
    rows = TableRows()
    for record in records:
        rows.add(record)
    return rows.table()


class TableRows:
    """A table of records, which are taken in one at a time; memory holds its columns."""

    def __init__(self) -> None:
        self._parts: list[RecordTable] = []
        self._next: list[Record] = []

    def add(self, record: Record) -> None:
        """Takes one problem in; several are looked at together, which takes less time."""
        self._next.append(record)
        if len(self._next) == PORTION:
            self._look_at_next()

    def extend(self, later: TableRows) -> None:
        """Takes in the problems that follow."""
        if self._next:
            self._look_at_next()
        if later._next or later._parts:
            self._parts.append(later.table())

    def table(self) -> RecordTable:
        """The table of all that were taken in."""
        if self._next or not self._parts:
            self._look_at_next()
        self._parts = [_one_below_the_other(self._parts)]
        return self._parts[0]

    def _look_at_next(self) -> None:
        self._parts.append(table_of_rows(rows_of(self._next)))
        self._next = []


def _one_below_the_other(tables: Sequence[RecordTable]) -> RecordTable:
    """One table of at least one; steps that a part has not count no pairs."""
    steps = max(table.pairs.shape[-1] for table in tables)
    first = np.cumsum([0, *(table.num_problems for table in tables)])[:-1].astype(np.int32)
    columns = {field.name: [getattr(table, field.name) for table in tables] for field in fields(RecordTable)}
    columns["problem"] = [one + start for one, start in zip(columns["problem"], first, strict=True)]
    if len(tables) > 1:
        for name in _BY_STEP:
            columns[name] = [np.pad(one, ((0, 0), (0, steps - one.shape[1]))) for one in columns[name]]
    return RecordTable(**{name: np.concatenate(parts) for name, parts in columns.items()})


def table_of_rows(rows: Sequence[dict[str, Any]]) -> RecordTable:
    """The table of what `rows_of` has made of records; rows may be in several tables."""
    steps = max((len(row["pairs"]) for row in rows), default=0)
    if any(len(row["pairs"]) < steps for row in rows):
        rows = [row | {name: np.pad(row[name], (0, steps - len(row[name]))) for name in _BY_STEP} for row in rows]
    per_problem = ("num_rollouts", "num_right", "num_invalid", "num_alike")
    flat = {"score": np.float32, "correct": np.bool_}
    columns: dict[str, Any] = {name: np.array([row[name] for row in rows], dtype=np.int64) for name in per_problem}
    columns |= {name: _joined([row[name] for row in rows], dtype) for name, dtype in flat.items()}
    columns["problem"] = np.repeat(np.arange(len(rows), dtype=np.int32), [len(row["score"]) for row in rows])
    others = [name for name in (rows[0] if rows else _NO_ROW) if name not in columns]
    columns |= {name: np.array([row[name] for row in rows], dtype=np.float64) for name in others}
    return RecordTable(**columns)


_BY_STEP = ("pairs_won", "pairs")
_NO_ROW = ["greedy_right", "diversity", "vote_share", "vote_right", "best_score", "best_right"]
_NO_ROW += ["weighted_share", "weighted_right", "pairs_won", "pairs"]


def _joined(parts: list[Any], dtype: Any) -> Any:
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype, copy=False)


def rows_of(records: Sequence[Record]) -> list[dict[str, Any]]:
    """What the table holds of each problem."""
    rows = [_row(record) for record in records]
    for places, scores, mask in alike(records):
        correct = torch.tensor([[one.correct for one in records[place].rollouts] for place in places])
        for place, won, pairs in zip(places, *(part.numpy() for part in pairs_won(scores, correct, mask)), strict=True):
            rows[place] |= {"pairs_won": won, "pairs": pairs}
    return rows


def _row(record: Record) -> dict[str, Any]:
    rollouts = record.rollouts
    answers, correct = [rollout.answer for rollout in rollouts], [rollout.correct for rollout in rollouts]
    steps = [value for value in record.diversity if value is not None]
    first = rollouts[0]
    alike = sum(
        (one.text, one.num_latents, one.step_scores) == (first.text, first.num_latents, first.step_scores)
        for one in rollouts
    )
    votes = _VOTING.choose(answers).weights or {}
    return {
        "num_rollouts": len(rollouts),
        "num_right": sum(correct),
        "num_invalid": sum(answer is None for answer in answers),
        "num_alike": alike,
        "greedy_right": float(record.greedy.correct),
        "diversity": sum(steps) / len(steps) if steps else np.nan,
        "vote_share": max(votes.values(), default=0.0) / len(rollouts),
        "vote_right": _VOTING.expected_accuracy(answers, correct, None, None, [len(rollouts)])[0],
        **_of_scores(record, answers, correct),
    }


def _of_scores(record: Record, answers: list[float | None], correct: list[bool]) -> dict[str, Any]:
    """The columns that need the last step scores."""
    steps = [one.step_scores or () for one in record.rollouts]
    last = np.array([row[-1] for row in steps if row], dtype=np.float32)
    of_scored = np.array(correct)[[bool(row) for row in steps]]
    if not len(last):
        nothing = dict.fromkeys(("best_score", "best_right", "weighted_share", "weighted_right"), np.nan)
        return nothing | {"score": last, "correct": of_scored}
    share, right = _weighted(answers, correct, [row[-1] if row else -np.inf for row in steps])
    return {
        "best_score": last.max(),
        "best_right": of_scored[last.argmax()],
        "weighted_share": share,
        "weighted_right": right,
        "score": last,
        "correct": of_scored,
    }


def _weighted(answers: list[float | None], correct: list[bool], last: list[float]) -> tuple[float, float]:
    """The share of weight of `WeightedVoting("last")`'s answer, and how right that is, without tensors."""
    classes, keys = answer_classes(answers)
    if not keys:
        return 0.0, 0.0
    gathered = gathered_weights(classes[None], np.array([last]), len(keys))[0]
    winners = gathered >= gathered.max() * (1 - TIE)
    credits = class_credits(classes, correct, len(keys))
    return float(gathered.max() / gathered.sum()), float(credits[winners].mean())


def ranking(table: RecordTable, step: int | None = None) -> Interval:
    """P(a right rollout of a problem scores above a wrong one), over all pairs of a step, or of all steps; NaN without pairs."""
    chosen = slice(None) if step is None else slice(step, step + 1)
    return ratio_interval(table.pairs_won[:, chosen].sum(1), table.pairs[:, chosen].sum(1))


def last_ranking(table: RecordTable) -> Interval:
    """The same for the scores of the last latent thoughts, whatever the lengths."""
    counts = np.bincount(table.problem, minlength=table.num_problems)
    first = np.cumsum(counts) - counts
    won, pairs = np.zeros(table.num_problems), np.zeros(table.num_problems)
    for count in np.unique(counts[counts > 0]):
        rows = np.flatnonzero(counts == count)
        for part in np.array_split(rows, math.ceil(len(rows) * count / _AT_ONCE)):
            places = first[part, None] + np.arange(count)
            scores, correct = torch.from_numpy(table.score[places, None]), torch.from_numpy(table.correct[places])
            won[part], pairs[part] = (found[:, 0].numpy() for found in pairs_won(scores, correct))
    return ratio_interval(won, pairs)
