"""What every strategy makes of a problem's record: the answer it chooses, how good it is, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from latent_tts.aggregation import Aggregation, check_ks
from latent_tts.aggregation.base import ScoredAnswers, answer_classes, without_scores
from latent_tts.evaluation.records import Record
from latent_tts.evaluation.strategies import Strategy, of_aggregation

PORTION = 32
"""Records that are summed up at a time."""

ROLLOUTS = Strategy("rollouts", kind="coverage")
"""The token steps of k rollouts before anything is done with them."""


def record_scores(record: Record) -> tuple[Tensor | None, Tensor | None]:
    """Step scores (N, T) of a record, 0 where masked, and their mask; None where no reward model scored the rollouts."""
    rows = [rollout.step_scores for rollout in record.rollouts if rollout.step_scores is not None]
    if not rows:
        return None, None
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    scores = np.zeros(mask.shape)
    scores[mask] = list(chain.from_iterable(rows))
    return torch.from_numpy(scores), torch.from_numpy(mask)


def choose(record: Record, aggregations: Sequence[Aggregation]) -> dict[str, float | None]:
    """The answer of every aggregation for a record: its field `chosen`."""
    answers = [rollout.answer for rollout in record.rollouts]
    scores, mask = record_scores(record)
    return {part.name: part.choose(answers, scores, mask).answer for part in aggregations}


def curves_of(aggregations: Sequence[Aggregation], ks: Sequence[int]) -> list[Strategy]:
    """Every aggregation at every k."""
    return [of_aggregation(part, k) for part in aggregations for k in ks]


def curve_values(
    records: Sequence[Record], aggregations: Sequence[Aggregation], ks: Sequence[int]
) -> list[list[float]]:
    """How good every aggregation is on each problem: its expectation over the k-subsets of the rollouts.

    Scores are reduced for several problems at once, each to what it would be alone.

    Returns:
        P rows with the columns of `curves_of`.
    """
    return [
        _expected(record, scores, aggregations, ks)
        for record, scores in zip(records, reduced_scores(records, aggregations), strict=True)
    ]


def reduced_scores(records: Sequence[Record], aggregations: Sequence[Aggregation]) -> list[list[np.ndarray]]:
    """Of each record, for each aggregation, one score a rollout, (N,).

    Raises:
        UserError: An aggregation needs scores, and a record has none.
    """
    unscored = any(record.rollouts[0].step_scores is None for record in records)
    if unscored and (needy := [part.name for part in aggregations if part.needs_scores]):
        raise without_scores(needy[0])
    found: list[list[np.ndarray]] = [[] for _ in records]
    for rows, scores, mask in alike(records):
        for part in aggregations:
            for row, reduced in zip(rows, part.reduce(scores, mask), strict=True):
                found[row].append(reduced)
    return found


def alike(records: Sequence[Record]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Problems of the same numbers of rollouts and steps: their rows, step scores (P, N, T) and mask; T is 0 without scores.

    Others are not filled up to their shape: a sum may depend, by its last digits, on the number of its terms.
    """
    shapes: dict[tuple[int, ...], list[int]] = {}
    found: list[tuple[Tensor, Tensor]] = []
    for row, record in enumerate(records):
        scores, mask = record_scores(record)
        if scores is None or mask is None:
            scores = torch.zeros(len(record.rollouts), 0)
            mask = scores.bool()
        found.append((scores, mask))
        shapes.setdefault(tuple(scores.shape), []).append(row)
    for rows in shapes.values():
        yield rows, torch.stack([found[row][0] for row in rows]), torch.stack([found[row][1] for row in rows])


def _expected(
    record: Record, scores: Sequence[np.ndarray], aggregations: Sequence[Aggregation], ks: Sequence[int]
) -> list[float]:
    answers = [rollout.answer for rollout in record.rollouts]
    correct = [rollout.correct for rollout in record.rollouts]
    check_ks(ks, len(answers))
    classes, keys = answer_classes(answers)
    key = int.from_bytes(blake2b(record.problem_id.encode(), digest_size=7).digest(), "little")
    seen = [ScoredAnswers(answers, classes, keys, reduced) for reduced in scores]
    return [
        value for part, one in zip(aggregations, seen, strict=True) for value in part.expectation(one, correct, ks, key)
    ]


def token_step_values(record: Record, aggregations: Sequence[Aggregation], ks: Sequence[int]) -> list[float]:
    """Compute for one problem, in positions that went through a model; for k of N rollouts its expectation.

    Strategies that need scores pay for the reward model's positions too.

    Returns:
        That of k rollouts before anything is done with them, for every k, then that of `curves_of`.
    """
    steps, num_rollouts = record.token_steps, len(record.rollouts)
    costs = [_cost_of_subset(steps.rollouts, steps.rollouts_shared, k / num_rollouts) for k in ks]
    scored = [_cost_of_subset(steps.reward, steps.reward_shared, k / num_rollouts) for k in ks]
    answers = [rollout.answer for rollout in record.rollouts]
    for part in aggregations:
        spent = part.rollouts_spent(answers, ks)
        drawn = [_cost_of_subset(steps.rollouts, steps.rollouts_shared, k / num_rollouts) for k in spent]
        costs += [a + b for a, b in zip(drawn, scored, strict=True)] if part.needs_scores else drawn
    return costs


def _cost_of_subset(total: int, shared: int, share: float) -> float:
    """What is shared is paid once, of the rest the share of the rollouts."""
    return shared + share * (total - shared)
