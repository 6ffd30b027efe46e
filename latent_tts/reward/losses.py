"""Losses of the latent reward model, as pure functions of scores and labels.

Both losses return a sum and the number of terms in it, so that a mean over several batches or processes is the sum of sums
over the sum of counts, whatever the padding and however the problems are split.

Shapes: scores and labels (B, N, T); mask (B, N, T) bool, true where rollout n has a latent at step t. What stands in scores
and labels where the mask is false is never looked at (labels are NaN there).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from latent_tts.errors import UserError

Targets = Literal["raw", "normalised", "one_hot"]
Labels = Literal["continuations", "final"]


class LossSum(NamedTuple):
    """A loss before it is averaged."""

    total: Tensor  # () float32, with gradient
    num_terms: Tensor  # () long

    @property
    def mean(self) -> Tensor:
        """The average over the terms, 0 (with zero gradients) where there is none."""
        return self.total / self.num_terms.clamp(min=1)


def step_labels(values: Tensor, correct: Tensor, labels: Labels) -> Tensor:
    """Labels in [0, 1] of every step.

    Args:
        values: (B, N, T) Monte-Carlo values of the prefixes.
        correct: (B, N) bool, whether the rollout's own answer is right.
        labels: ``continuations`` takes the values, ``final`` gives every step of a rollout the rollout's own correctness.

    Returns:
        (B, N, T).
    """
    return values if labels == "continuations" else correct.to(values.dtype).unsqueeze(-1).expand_as(values)


def step_weights(labels: Tensor, mask: Tensor, targets: Targets = "raw") -> Tensor:
    """Weights w of the contrastive loss, (B, N, T), 0 where masked; a step whose labels are all 0 has no weight under any target.

    ``raw``: the label y itself. ``normalised``: y over the step's sum of y, so every step weighs 1. ``one_hot``: 1 at the
    best rollout of the step, shared equally among the best where several are.
    """
    y = torch.where(mask, labels, 0.0)
    if targets == "raw":
        return y
    if targets == "one_hot":
        y = ((y == y.amax(dim=1, keepdim=True)) & (y > 0)).to(y.dtype)
    elif targets != "normalised":
        raise UserError(f"targets must be raw, normalised or one_hot, got {targets!r}.")
    mass = y.sum(dim=1, keepdim=True)
    return y / torch.where(mass > 0, mass, 1.0)


def contrastive_loss(scores: Tensor, labels: Tensor, mask: Tensor, targets: Targets = "raw") -> LossSum:
    """Step-wise contrastive loss, - sum_n w_n log softmax_n(r_n) at every valid step of every problem.

    The softmax runs over the rollouts of one problem that have a latent at that step. A step is valid where at least two have
    one and some label is above 0; every other step is left out of the sum and of the count, and gives no gradient. (At a step
    with one rollout the softmax is 1 and its logarithm 0; at one with all labels 0 every weight is 0.)

    Raises:
        UserError: N = 1, where there is nothing to contrast with.
    """
    if scores.shape[1] < 2:
        raise UserError(
            "A contrastive loss compares the rollouts of a problem and these annotations have 1 rollout a problem; annotate with "
            "num_rollouts of 2 or more, or train with the bce loss."
        )
    weights = step_weights(labels.float(), mask, targets)  # (B, N, T)
    valid = (mask.sum(dim=1) > 1) & (weights.sum(dim=1) > 0)  # (B, T)
    # A number far below any score in place of minus infinity: a step without any rollout keeps finite gradients.
    log_probability = scores.float().masked_fill(~mask, torch.finfo(torch.float32).min / 2).log_softmax(dim=1)
    terms = -(weights * torch.where(mask, log_probability, 0.0)).sum(dim=1)  # (B, T)
    return LossSum(torch.where(valid, terms, 0.0).sum(), valid.sum())


def bce_loss(scores: Tensor, labels: Tensor, mask: Tensor) -> LossSum:
    """Binary cross-entropy of sigmoid(r) against the label, at every step of every rollout that has a latent."""
    terms = binary_cross_entropy_with_logits(
        torch.where(mask, scores.float(), 0.0), torch.where(mask, labels.float(), 0.0), reduction="none"
    )
    return LossSum(torch.where(mask, terms, 0.0).sum(), mask.sum())


def require_valid_steps(mask: Tensor, problem_ids: Sequence[str]) -> None:
    """Refuses problems none of whose rollouts has a single labelled latent.

    Raises:
        UserError: Names the first such problem.
    """
    for problem_id, empty in zip(problem_ids, (~mask.flatten(1).any(dim=1)).tolist(), strict=True):
        if empty:
            raise UserError(
                f"Problem {problem_id} has no valid step (a latent with a value) in any of its rollouts, so there is nothing "
                "to learn from it; annotate it again, or leave it out."
            )
