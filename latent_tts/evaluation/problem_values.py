"""What every strategy makes of one problem's record: the answer it chooses, how good it is, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from latent_tts.aggregation import Aggregation
from latent_tts.evaluation.records import Record
from latent_tts.evaluation.strategies import GREEDY, SINGLE, WRITTEN, Strategy, of_aggregation

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


def accuracy_values(
    record: Record, aggregations: Sequence[Aggregation], ks: Sequence[int], curves: Sequence[Strategy]
) -> dict[Strategy, float]:
    """How good every strategy is on one problem: 0 or 1, or its expectation over the k-subsets of the rollouts.

    `curves` is what `curves_of` gives, made once for all records.
    """
    answers = [rollout.answer for rollout in record.rollouts]
    correct = [rollout.correct for rollout in record.rollouts]
    scores, mask = record_scores(record)
    key = int.from_bytes(blake2b(record.problem_id.encode(), digest_size=7).digest(), "little")
    values = {GREEDY: float(record.greedy.correct), SINGLE: sum(correct) / len(correct)}
    if record.written is not None:
        values[WRITTEN] = float(record.written.correct)
    expected = [part.expected_accuracy(answers, correct, scores, mask, ks, key) for part in aggregations]
    values.update(zip(curves, chain.from_iterable(expected), strict=True))
    return values


def token_step_values(
    record: Record, aggregations: Sequence[Aggregation], ks: Sequence[int], curves: Sequence[Strategy]
) -> dict[Strategy, float]:
    """Compute of every strategy on one problem, in positions that went through a model; for k of N rollouts its expectation.

    Strategies that need scores pay for the reward model's positions too.
    """
    steps, num_rollouts = record.token_steps, len(record.rollouts)
    drawn = [_cost_of_subset(steps.rollouts, steps.rollouts_shared, k / num_rollouts) for k in ks]
    scored = [_cost_of_subset(steps.reward, steps.reward_shared, k / num_rollouts) for k in ks]
    values = {GREEDY: float(steps.greedy)} | {ROLLOUTS.at(k): cost for k, cost in zip(ks, drawn, strict=True)}
    if record.written is not None:
        values[WRITTEN] = float(record.written.token_steps)
    answers, costs = [rollout.answer for rollout in record.rollouts], list[float]()
    for part in aggregations:
        spent = part.rollouts_spent(answers, ks)
        drawn = [_cost_of_subset(steps.rollouts, steps.rollouts_shared, k / num_rollouts) for k in spent]
        costs += [a + b for a, b in zip(drawn, scored, strict=True)] if part.needs_scores else drawn
    values.update(zip(curves, costs, strict=True))
    return values


def _cost_of_subset(total: int, shared: int, share: float) -> float:
    """What is shared is paid once, of the rest the share of the rollouts."""
    return shared + share * (total - shared)
