"""How well scores rank the rollouts of a problem: recall@1, and pairwise accuracy step by step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from latent_tts.aggregation.base import StepReduction, reduce_step_scores
from latent_tts.aggregation.majority_voting import MajorityVoting
from latent_tts.errors import UserError
from latent_tts.metrics.exact_sum import PARTS, exact_parts, exact_total


def check_scores(scores: Tensor, mask: Tensor | None, num_steps: int | None = None) -> Tensor:
    """The mask (P, N, T) of scores (P, N, T), all true where None is given; a UserError where shapes do not fit."""
    if scores.ndim != 3 or (num_steps is not None and scores.shape[2] > num_steps):
        steps = "steps" if num_steps is None else f"at most {num_steps} steps"
        raise UserError(f"scores have shape {tuple(scores.shape)}: they must be (problems, rollouts, {steps})")
    if mask is not None and mask.shape != scores.shape:
        raise UserError(f"scores have shape {tuple(scores.shape)}, but their mask has shape {tuple(mask.shape)}")
    return torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.to(scores.device).bool()


def check_correct(correct: Tensor, scores: Tensor) -> Tensor:
    """`correct` (P, N) as bool on the device of the scores (P, N, T); a UserError where shapes do not fit."""
    if correct.shape != scores.shape[:2]:
        raise UserError(f"correctness has shape {tuple(correct.shape)}: these scores need {tuple(scores.shape[:2])}")
    return correct.to(scores.device).bool()


def _recall_at_1_update(
    scores: Tensor,
    correct: Tensor,
    mask: Tensor | None,
    answers: Sequence[Sequence[float | None]] | None,
    reduction: StepReduction,
) -> Tensor:
    """(6, 3): problems, exact sums of recall, chance and coverage, problems with answers, sum of voting accuracy."""
    mask, correct = check_scores(scores, mask), check_correct(correct, scores)
    order = reduce_step_scores(scores, mask, reduction).argsort(dim=1, descending=True, stable=True)  # lowest of equals
    recall = correct.gather(1, order[:, :1]).double()[:, 0]
    votes = [] if answers is None else [_vote(row, marks) for row, marks in zip(answers, correct.tolist(), strict=True)]
    chance, coverage = correct.double().mean(1), correct.any(1).double()
    voted = torch.tensor(votes, dtype=torch.float64)
    columns = [torch.ones_like(recall), recall, chance, coverage, torch.ones_like(voted), voted]
    return torch.stack([exact_parts(column.cpu()).sum(0) for column in columns])


def _vote(answers: Sequence[float | None], correct: Sequence[bool]) -> float:
    return MajorityVoting().expected_accuracy(answers, correct, None, None, [len(answers)])[0]


def _recall_at_1_compute(sums: Tensor) -> dict[str, Tensor]:
    problems, recall, chance, coverage, voted, voting = exact_total(sums)
    shares = {"recall_at_1": recall / problems, "chance": chance / problems, "coverage": coverage / problems}
    return shares | {"voting": voting / voted}


class RecallAt1(Metric):
    """Share of problems whose best-scored rollout is right, beside what it competes with, all in 0..1.

    `compute` gives {"recall_at_1", "chance", "coverage", "voting"}: chance is the mean share of right rollouts,
    coverage the share of problems with a right rollout (the ceiling), voting the accuracy of majority voting over the
    same rollouts (ties shared; NaN where no answers were given). Score ties: the lowest index, as in best-of-N.

    Args:
        reduction: how step scores become one score a rollout.
    """

    higher_is_better = True
    full_state_update = False
    sums: Tensor

    def __init__(self, reduction: StepReduction = "sum") -> None:
        super().__init__()
        self.reduction = reduction
        self.add_state("sums", torch.zeros(6, PARTS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        scores: Tensor,
        correct: Tensor,
        mask: Tensor | None = None,
        answers: Sequence[Sequence[float | None]] | None = None,
    ) -> None:
        """Add P problems: scores (P, N, T), correct (P, N), mask (P, N, T) of existing steps, answers P lists of N."""
        self.sums += _recall_at_1_update(scores, correct, mask, answers, self.reduction).to(self.sums.device)

    def compute(self) -> dict[str, Tensor]:
        """The four shares, float64 scalars."""
        return _recall_at_1_compute(self.sums)


def pairs_won(
    scores: Tensor, correct: Tensor, mask: Tensor | None = None, num_steps: int | None = None
) -> tuple[Tensor, Tensor]:
    """Pairs of a right and a wrong rollout of a problem that the right one wins at each step (a tie is half), and all such pairs.

    The wrong rollouts of each problem and step are sorted once; a right one's place among them counts its pairs
    (Mann-Whitney), so no N x N table is made.

    Args:
        scores: (P, N, T).
        correct: (P, N) bool.
        mask: (P, N, T) whether a rollout has the step; None for all.
        num_steps: The largest T that is allowed.

    Returns:
        (P, T) and (P, T) float64.
    """
    mask, correct = check_scores(scores, mask, num_steps), check_correct(correct, scores)
    scores, mask = scores.detach().double().transpose(1, 2).contiguous(), mask.transpose(1, 2)  # (P, T, N)
    right, wrong = mask & correct[:, None], mask & ~correct[:, None]
    ranked = torch.where(wrong, scores, torch.inf).sort(-1).values.contiguous()
    below = torch.searchsorted(ranked, scores)
    not_above = torch.searchsorted(ranked, scores, right=True)
    won = ((below + not_above) * right).sum(-1).double() / 2
    return won, (right.sum(-1) * wrong.sum(-1)).double()


def _pairwise_ranking_update(scores: Tensor, correct: Tensor, mask: Tensor | None, num_steps: int) -> Tensor:
    """(2, T): what `pairs_won` gives, over all problems."""
    won, pairs = pairs_won(scores, correct, mask, num_steps)
    return torch.nn.functional.pad(torch.stack([won.sum(0), pairs.sum(0)]), (0, num_steps - scores.shape[2]))


def _pairwise_ranking_compute(won: Tensor, pairs: Tensor) -> dict[str, Tensor]:
    return {"mean": won.sum() / pairs.sum(), "per_step": won / pairs}


class PairwiseRankingAccuracy(Metric):
    """Share of (right, wrong) pairs of rollouts of one problem in which the right one scores higher; a tie counts half.

    `compute` gives {"mean": (), "per_step": (T,)}, 0.5 for scores that know nothing. All pairs of all problems count
    the same; a pair counts at a step that both rollouts reached; NaN where there is no pair.

    Args:
        num_steps: T, the largest number of latents a rollout can have.
    """

    higher_is_better = True
    full_state_update = False
    won: Tensor
    pairs: Tensor

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.add_state("won", torch.zeros(num_steps, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pairs", torch.zeros(num_steps, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, correct: Tensor, mask: Tensor | None = None) -> None:
        """Add P problems: scores (P, N, T') with T' <= T, correct (P, N), mask (P, N, T') of existing steps."""
        won, pairs = _pairwise_ranking_update(scores, correct, mask, self.num_steps).to(self.won.device)
        self.won += won
        self.pairs += pairs

    def compute(self) -> dict[str, Tensor]:
        """{"mean": (), "per_step": (T,)}, float64."""
        return _pairwise_ranking_compute(self.won, self.pairs)
