"""Losses of the latent reward model, as pure functions of scores and labels.

Every loss returns a sum and the number of terms in it, so that a mean over several batches or processes is the sum of sums
over the sum of counts, whatever the padding and however the problems are split. `RewardLoss` is the choice of one: a further
loss, target or kind of label is a function and a line in `LOSSES`, `TARGETS` or `LABELS`.

Shapes: scores and labels (B, N, T); mask (B, N, T) bool, true where rollout n has a latent at step t. What stands in scores
and labels where the mask is false is never looked at (labels are NaN there).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from latent_tts.errors import UserError


class LossSum(NamedTuple):
    """A loss before it is averaged."""

    total: Tensor  # () float32, with gradient
    num_terms: Tensor  # () long

    @property
    def mean(self) -> Tensor:
        """The average over the terms, 0 (with zero gradients) where there is none."""
        return self.total / self.num_terms.clamp(min=1)


# What a step is worth ---------------------------------------------------------------------------------------------------


def continuation_labels(values: Tensor, correct: Tensor) -> Tensor:
    """The Monte-Carlo values of the prefixes, (B, N, T)."""
    return values


def final_labels(values: Tensor, correct: Tensor) -> Tensor:
    """The correctness of the rollout's own answer, (B, N) bool, for every step of it: (B, N, T)."""
    return correct.to(values.dtype).unsqueeze(-1).expand_as(values)


LABELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"continuations": continuation_labels, "final": final_labels}


# How it weighs in the contrastive loss ------------------------------------------------------------------------------------


def raw_targets(labels: Tensor) -> Tensor:
    """The label itself (published code)."""
    return labels


def normalised_targets(labels: Tensor) -> Tensor:
    """The label over the step's sum of labels, so that every step weighs 1."""
    mass = labels.sum(dim=1, keepdim=True)
    return labels / torch.where(mass > 0, mass, 1.0)


def one_hot_targets(labels: Tensor) -> Tensor:
    """1 at the best rollout of the step, shared equally among the best where several are."""
    return normalised_targets(((labels == labels.amax(dim=1, keepdim=True)) & (labels > 0)).to(labels.dtype))


TARGETS: dict[str, Callable[[Tensor], Tensor]] = {
    "raw": raw_targets,
    "normalised": normalised_targets,
    "one_hot": one_hot_targets,
}


# Losses -------------------------------------------------------------------------------------------------------------------


def contrastive_loss(scores: Tensor, labels: Tensor, mask: Tensor, targets: TargetsName = "raw") -> LossSum:
    """Step-wise contrastive loss, - sum_n w_n log softmax_n(r_n) at every valid step of every problem.

    The softmax runs over the rollouts of one problem that have a latent at that step. A step is valid where at least two have
    one and some label is above 0; every other step is left out of the sum and of the count, and gives no gradient. (At a step
    with one rollout the softmax is 1 and its logarithm 0; at one with all labels 0 every weight is 0 under any targets.)

    Raises:
        UserError: N = 1, where there is nothing to contrast with.
    """
    if scores.shape[1] < 2:
        raise UserError(
            "A contrastive loss compares the rollouts of a problem and these annotations have 1 rollout a problem; annotate with "
            "num_rollouts of 2 or more, or train with the bce loss."
        )
    weights = TARGETS[targets](torch.where(mask, labels.float(), 0.0))  # (B, N, T)
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


LOSSES: dict[str, Callable[..., LossSum]] = {"contrastive": contrastive_loss, "bce": bce_loss}

if TYPE_CHECKING:
    LossName = str
    TargetsName = str
    LabelsName = str
else:  # the choices that a command line shows
    LossName, TargetsName, LabelsName = (Literal[tuple(table)] for table in (LOSSES, TARGETS, LABELS))


@dataclass(frozen=True)
class RewardLoss:
    """What a reward model is trained by.

    Raises:
        UserError: A name that is not in the tables, or targets for a loss that has none.
    """

    loss: LossName = "contrastive"
    """contrastive compares the rollouts of a problem at each step, bce looks at every step by itself."""
    targets: TargetsName = "raw"
    """Weights of the contrastive loss: raw labels (published), normalised over the rollouts, or one_hot at the best."""
    labels: LabelsName = "continuations"
    """continuations are the Monte-Carlo values of the prefixes, final is the rollout's own correctness."""

    def __post_init__(self) -> None:
        tables: Sequence[tuple[str, Mapping[str, Any]]] = (("loss", LOSSES), ("targets", TARGETS), ("labels", LABELS))
        for name, table in tables:
            if getattr(self, name) not in table:
                raise UserError(f"{name} must be one of {', '.join(table)}, got {getattr(self, name)!r}.")
        if self.targets != "raw" and not self.contrasts:
            raise UserError(
                f"targets {self.targets} weigh the rollouts of a contrastive loss, and {self.loss} compares none: leave targets "
                "out, or train with loss contrastive."
            )

    @property
    def contrasts(self) -> bool:
        """Whether the loss compares the rollouts of a problem, and so needs two of them."""
        return self.loss == "contrastive"

    def labelled(self, values: Tensor, mask: Tensor) -> Tensor:
        """(B, N, T) bool, latents that have a label of the chosen kind."""
        return mask & ~values.isnan() if self.labels == "continuations" else mask

    def __call__(self, scores: Tensor, values: Tensor, correct: Tensor, mask: Tensor) -> LossSum:
        """The loss of B problems.

        Args:
            scores: (B, N, T).
            values: (B, N, T) Monte-Carlo values of the prefixes, NaN where there is none.
            correct: (B, N) bool, whether the rollout's own answer is right.
            mask: (B, N, T) bool, true where there is a latent.
        """
        labels, labelled = LABELS[self.labels](values, correct), self.labelled(values, mask)
        options = {"targets": self.targets} if self.contrasts else {}
        return LOSSES[self.loss](scores, labels, labelled, **options)


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
