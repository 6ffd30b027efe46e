"""What every aggregation shares: the result, the interface, and the reduction of step scores to one score a rollout.

An aggregation turns the N rollouts of one problem into one answer. `choose` is what a user would run;
`expected_accuracy` is how good that choice is when only k of the N rollouts had been drawn: the mean over the k-subsets
of the N.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from latent_tts.answers import answer_key
from latent_tts.errors import UserError
from latent_tts.seeding import widest_float

StepReduction = Literal["sum", "mean", "min", "last", "product"]


@dataclass(frozen=True)
class Aggregate:
    """The choice of an aggregation for one problem."""

    answer: float | None
    """The chosen answer; None where no rollout has one (or the chosen rollout has none)."""
    index: int | None
    """The rollout that gave it, counted from 0; None where no rollout could be chosen."""
    weights: dict[float, float] | None
    """What each distinct answer (by `answer_key`) gathered, in votes or shares of weight; None where nothing is."""


class Named:
    """How an algorithm with options is called: in configurations, in results, and for people."""

    family: ClassVar[str]
    """Its name in configurations: `best_of_n`."""
    label: ClassVar[str]
    """Its name for people: `best-of-N`."""
    by_default: ClassVar[bool] = True
    """Whether it is among those that are taken where none is named."""
    needs_scores: ClassVar[bool] = True
    """Whether it needs a reward model."""

    @property
    def options(self) -> tuple[str, ...]:
        """What differs from the defaults, a word each, as it stands in names: `mean`, `t0.5`."""
        return ()

    @property
    def name(self) -> str:
        """The key under which results are reported: `best_of_n_mean`."""
        return "_".join((self.family, *self.options))

    def rollouts_spent(self, answers: Sequence[float | None], ks: Sequence[int]) -> list[float]:
        """How many rollouts an aggregation of k asks for: all k, where it does not stop before."""
        return [float(k) for k in ks]


@dataclass(frozen=True)
class ScoredAnswers:
    """The N rollouts of one problem, as an aggregation sees them."""

    answers: Sequence[float | None]
    """None where a rollout has none."""
    classes: np.ndarray
    """(N,) which of the distinct answers each rollout gave, -1 for none; they are numbered in order of appearance."""
    keys: list[float]
    """The distinct answers, by `answer_key`."""
    scores: np.ndarray
    """(N,) float64, one a rollout; 0 where the aggregation needs none."""

    def credit(self, correct: Sequence[bool]) -> np.ndarray:
        """What it is worth when a distinct answer wins, (C,) float64; see `class_credits`."""
        return class_credits(self.classes, correct, len(self.keys))


class Aggregation(Named, ABC):
    """One way to turn N rollouts of a problem into one answer.

    A subclass says which of the rollouts wins, and how often that is a right one.
    """

    needs_scores: ClassVar[bool] = False
    """Whether `scores` must be given."""

    @abstractmethod
    def pick(self, rollouts: ScoredAnswers) -> Aggregate:
        """The choice; there is at least one rollout."""

    @abstractmethod
    def expectation(
        self, rollouts: ScoredAnswers, correct: Sequence[bool], ks: Sequence[int], rng_key: int
    ) -> list[float]:
        """See `expected_accuracy`; the arguments fit each other."""

    def choose(
        self, answers: Sequence[float | None], scores: Tensor | None = None, mask: Tensor | None = None
    ) -> Aggregate:
        """Choose one answer.

        Args:
            answers: the N parsed answers, None where there is none.
            scores: (N, T) step scores, any real numbers; None where the aggregation needs none.
            mask: (N, T) true where a step exists; None for all.

        Raises:
            UserError: no rollout, or scores that are missing or do not fit.
        """
        return self.pick(self._seen(answers, scores, mask))

    def expected_accuracy(
        self,
        answers: Sequence[float | None],
        correct: Sequence[bool],
        scores: Tensor | None,
        mask: Tensor | None,
        ks: Sequence[int],
        rng_key: int = 0,
    ) -> list[float]:
        """Mean correctness of the choice over the k-subsets of the N rollouts, for every k of `ks`.

        `rng_key` seeds the draw of subsets where there are too many to list (a function of the problem, so that the
        result is the same in every run); aggregations with a closed form ignore it.

        Raises:
            UserError: as `choose`, or a k out of reach, or marks that are not one for each answer.
        """
        check_ks(ks, len(answers))
        if len(correct) != len(answers):
            raise UserError(f"there are {len(answers)} answers but {len(correct)} correctness marks: give one each")
        return self.expectation(self._seen(answers, scores, mask), correct, ks, rng_key)

    def reduce(self, scores: Tensor, mask: Tensor) -> np.ndarray:
        """What `ScoredAnswers.scores` holds of problems of one shape: step scores (P, N, T) with their mask to (P, N)."""
        return np.zeros(scores.shape[:-1])

    def _seen(self, answers: Sequence[float | None], scores: Tensor | None, mask: Tensor | None) -> ScoredAnswers:
        classes, keys = answer_classes(answers)
        return ScoredAnswers(answers, classes, keys, self._reduced(answers, scores, mask))

    def _reduced(self, answers: Sequence[float | None], scores: Tensor | None, mask: Tensor | None) -> np.ndarray:
        return np.zeros(len(answers))


@dataclass(frozen=True)
class ScoredAggregation(Aggregation):
    """One that goes by the scores of a reward model."""

    reduction: StepReduction = "sum"
    """How the step scores of a rollout become one score."""

    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_reduction(self.reduction)

    def reduce(self, scores: Tensor, mask: Tensor) -> np.ndarray:
        """See `Aggregation.reduce`."""
        return reduce_step_scores(scores, mask, self.reduction).cpu().numpy()

    def _reduced(self, answers: Sequence[float | None], scores: Tensor | None, mask: Tensor | None) -> np.ndarray:
        return rollout_scores(self.name, answers, scores, mask, self.reduction)


def check_reduction(reduction: str) -> None:
    """Raise a UserError unless it is one of `StepReduction`."""
    if reduction not in get_args(StepReduction):
        known = ", ".join(get_args(StepReduction))
        raise UserError(f"step score reduction '{reduction}' is unknown: use one of {known}")


def k_grid(num_rollouts: int) -> list[int]:
    """The values of k at which curves are reported: the powers of two up to N, and N itself.

    >>> k_grid(12)
    [1, 2, 4, 8, 12]
    """
    if num_rollouts < 1:
        raise UserError(f"the number of rollouts is {num_rollouts}: it must be at least 1")
    return [2**i for i in range(num_rollouts.bit_length()) if 2**i < num_rollouts] + [num_rollouts]


def check_ks(ks: Sequence[int], num_rollouts: int) -> None:
    """Raise a UserError unless every k is between 1 and the number of rollouts."""
    for k in ks:
        if not 1 <= k <= num_rollouts:
            raise UserError(f"k = {k} is out of reach with {num_rollouts} rollouts: use 1 <= k <= {num_rollouts}")


def reduce_step_scores(scores: Tensor, mask: Tensor | None = None, reduction: StepReduction = "sum") -> Tensor:
    """Reduce step scores (..., N, T) over the valid steps to one score a rollout (..., N), float64 where the device has it.

    Scores are unbounded logits. `product` is therefore the product of the step probabilities sigmoid(score), kept as
    its logarithm, the sum of logsigmoid(score): the order is that of the product, and exp() of it is the product
    itself. `sum` and `product` depend on the number of steps; where rollouts think for different lengths, `mean` does
    not. A rollout without a valid step gets -inf: it ranks behind every scored one.

    Raises:
        UserError: an unknown reduction, a mask of another shape, a score of a valid step that is not finite.
    """
    check_reduction(reduction)
    scores = scores.detach().to(widest_float(scores.device))
    mask = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.bool()
    if mask.shape != scores.shape:
        raise UserError(f"scores have shape {tuple(scores.shape)}, but their mask has shape {tuple(mask.shape)}")
    scores = torch.where(mask, scores, 0.0)
    if not torch.isfinite(scores).all():
        raise UserError("a step score is not finite: check the reward model for NaN or infinite outputs")
    count = mask.sum(-1)  # (..., N)
    if not scores.shape[-1]:  # of a problem none of whose rollouts is finite
        return torch.full_like(scores.sum(-1), -torch.inf)
    if reduction == "min":
        reduced = torch.where(mask, scores, torch.inf).amin(-1)
    elif reduction == "last":
        steps = torch.arange(1, scores.shape[-1] + 1, device=scores.device)
        reduced = scores.gather(-1, (steps * mask).argmax(-1, keepdim=True)).squeeze(-1)
    elif reduction == "product":
        reduced = torch.where(mask, torch.nn.functional.logsigmoid(scores), 0.0).sum(-1)
    else:
        reduced = scores.sum(-1) / (count.clamp_min(1) if reduction == "mean" else 1)
    return torch.where(count > 0, reduced, -torch.inf)


def without_scores(name: str) -> UserError:
    """What an aggregation that needs scores says where there are none."""
    return UserError(f"{name} needs step scores: give a reward model, or leave this aggregation out")


def rollout_scores(
    name: str, answers: Sequence[float | None], scores: Tensor | None, mask: Tensor | None, reduction: StepReduction
) -> np.ndarray:
    """Check the scores of one problem, (N, T), and reduce them to (N,) float64, to be read only."""
    if scores is None:
        raise without_scores(name)
    if scores.ndim != 2 or scores.shape[0] != len(answers):
        needed = f"({len(answers)}, steps)"
        raise UserError(f"scores have shape {tuple(scores.shape)}: {len(answers)} rollouts need {needed}")
    wide, shape = scores.detach().cpu().double().numpy(), tuple(scores.shape)
    exists = np.ones(shape, dtype=bool) if mask is None else mask.bool().cpu().numpy()
    return _reduced(wide.tobytes(), shape, exists.tobytes(), exists.shape, reduction)


@lru_cache(maxsize=8)  # every aggregation asks for those of a problem
def _reduced(
    scores: bytes, shape: tuple[int, ...], mask: bytes, mask_shape: tuple[int, ...], reduction: StepReduction
) -> np.ndarray:
    """`reduce_step_scores` of float64 scores and their mask by their content."""
    wide = torch.from_numpy(np.frombuffer(bytearray(scores)).reshape(shape))
    exists = torch.from_numpy(np.frombuffer(bytearray(mask), dtype=bool).reshape(mask_shape))
    reduced = reduce_step_scores(wide, exists, reduction).numpy()
    reduced.setflags(write=False)  # shared by all callers through the cache
    return reduced


def score_order(scores: np.ndarray) -> np.ndarray:
    """Rollout indices from the best score to the worst; the lower index comes first among equal scores."""
    return np.argsort(-scores, kind="stable")


def answer_classes(answers: Sequence[float | None]) -> tuple[np.ndarray, list[float]]:
    """Group equal answers.

    Returns:
        classes: (N,) int, the class of each rollout, -1 for None; classes are numbered in order of appearance.
        keys: the `answer_key` of each class.
    """
    if not len(answers):
        raise UserError("there is no rollout to aggregate: use at least 1 rollout a problem")
    classes, keys = _answer_classes(tuple(answers))
    return classes, list(keys)


@lru_cache(maxsize=64)  # every aggregation asks for those of a problem, and the figures for those of a portion of them
def _answer_classes(answers: tuple[float | None, ...]) -> tuple[np.ndarray, tuple[float, ...]]:
    numbers: dict[float, int] = {}
    classes = np.array(
        [-1 if answer is None else numbers.setdefault(answer_key(answer), len(numbers)) for answer in answers]
    )
    classes.setflags(write=False)  # shared by all callers through the cache
    return classes, tuple(numbers)


def class_credits(classes: np.ndarray, correct: Sequence[bool], num_classes: int) -> np.ndarray:
    """What it is worth when a class wins: the share of its rollouts that are right, (C,) float64.

    It is 0 or 1 where correctness and grouping use one equality; under the strict rule of the published code a class
    may hold right and wrong spellings of one value, and its answer is that of any member with equal chance.
    """
    voters = classes >= 0
    right = np.bincount(classes[voters], weights=np.asarray(correct, dtype=float)[voters], minlength=num_classes)
    return right / np.bincount(classes[voters], minlength=num_classes)
