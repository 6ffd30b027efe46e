"""Annotated rollouts as training batches of the reward model: whole problems, each with all its rollouts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.batching import GoesOnInEpoch, LengthGroupedBatches, LengthSortedBatches, require_workers
from latent_tts.annotation.reader import AnnotationStore
from latent_tts.annotation.records import AnnotatedProblem
from latent_tts.backbones.fingerprint import fingerprint_of_texts
from latent_tts.errors import UserError
from latent_tts.problems import problem_id_from_question
from latent_tts.reward.losses import require_valid_steps


@runtime_checkable
class PromptReader(Protocol):
    """What a module says of its prompts: how long they are, and how much it takes in."""

    @property
    def max_positions(self) -> int | None:
        """Positions of a prompt and the latents of a rollout; None where there is no limit."""

    def prompt_lengths(self, questions: Sequence[str]) -> list[int]:
        """Tokens of every question's prompt."""


@dataclass
class AnnotatedBatch:
    """B problems with N rollouts each, padded to the T of the longest rollout."""

    problem_ids: list[str]
    questions: list[str]
    latents: Tensor  # (B, N, T, D), 0 where there is no latent
    mask: Tensor  # (B, N, T) bool, true where there is a latent
    values: Tensor  # (B, N, T) Monte-Carlo values, NaN where there is none
    correct: Tensor  # (B, N) bool, the rollout's own answer
    answers: list[list[float | None]]  # B lists of N

    @property
    def valued(self) -> Tensor:
        """(B, N, T) bool, true where there is a latent whose prefix has a Monte-Carlo value."""
        return self.mask & ~self.values.isnan()

    def pin_memory(self) -> AnnotatedBatch:
        """The batch in memory that a GPU reads by itself, while the step before is still computed; torch's loader asks for it."""
        tensors = {name: getattr(self, name).pin_memory() for name in ("latents", "mask", "values", "correct")}
        return replace(self, **tensors)


def collate(problems: Sequence[AnnotatedProblem]) -> AnnotatedBatch:
    """Pads the steps of problems of one store."""
    steps = max(problem.latents.shape[1] for problem in problems)
    latents = [torch.nn.functional.pad(p.latents, (0, 0, 0, steps - p.latents.shape[1])) for p in problems]
    values = [torch.nn.functional.pad(p.values, (0, steps - p.values.shape[1]), value=float("nan")) for p in problems]
    return AnnotatedBatch(
        problem_ids=[problem.problem_id for problem in problems],
        questions=[problem.question for problem in problems],
        latents=torch.stack(latents),
        mask=torch.arange(steps) < torch.stack([problem.num_latents for problem in problems]).unsqueeze(-1),
        values=torch.stack(values),
        correct=torch.stack([problem.correct for problem in problems]),
        answers=[list(problem.answers) for problem in problems],
    )


class AnnotatedRolloutDataModule(GoesOnInEpoch):
    """Reads the folder an annotation run has written; a batch is an `AnnotatedBatch` of whole problems.

    Problems go to training or validation by the hash of their question, so the split does not move when problems are added.
    Problems whose rollouts are all right or all wrong are left out by default where nothing can be learned or measured from
    them. The training order is a function of (seed, epoch). With several devices every device takes its own batches, and
    equally many; validation has every problem once. Problems that are longer than the model's positions are counted and left
    out.

    Args:
        folder: Folder of annotations.
        val_folder: Folder of annotations to validate on; null splits them off from `folder`.
        val_share: Share of the problems of `folder` split off for validation; 0 for no validation.
        batch_size: Problems in a batch of one device.
        val_batch_size: Problems in a validation batch of one device; null takes batch_size.
        leave_out_uniform: Whether training leaves out problems whose rollouts are all right or all wrong.
        leave_out_uniform_val: Whether validation leaves them out too (recall@1 of the others is where scores matter).
        seed: Seed of the training order.
        pool_batches: Batches that are sorted by length together.
        num_workers: Processes that read batches; 0 reads them in the training process.
        memory_limit_gb: Problems are kept in memory once read, up to this size in each process.
    """

    def __init__(
        self,
        folder: str,
        val_folder: str | None = None,
        val_share: float = 0.1,
        batch_size: int = 32,
        val_batch_size: int | None = None,
        leave_out_uniform: bool = True,
        leave_out_uniform_val: bool = False,
        seed: int = 0,
        pool_batches: int = 16,
        num_workers: int = 0,
        memory_limit_gb: float = 4.0,
    ) -> None:
        super().__init__()
        for name, value in (
            ("batch_size", batch_size),
            ("val_batch_size", val_batch_size),
            ("pool_batches", pool_batches),
        ):
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        require_workers(num_workers)
        if not 0.0 <= memory_limit_gb < math.inf:
            raise UserError(f"memory_limit_gb must be a finite number and not negative, got {memory_limit_gb}")
        if not 0.0 <= val_share < 1.0:
            raise UserError(f"val_share is the share of problems to validate on and must be in [0, 1), got {val_share}")
        self.folder, self.val_folder, self.val_share = folder, val_folder, val_share
        self.batch_size, self.val_batch_size = batch_size, val_batch_size or batch_size
        self.leave_out_uniform, self.leave_out_uniform_val = leave_out_uniform, leave_out_uniform_val
        self.seed, self.pool_batches, self.num_workers = seed, pool_batches, num_workers
        self.memory_limit = int(memory_limit_gb * 1e9)
        self.stores: list[AnnotationStore] = []
        self.train_problems: AnnotatedRollouts | None = None
        self.val_problems: AnnotatedRollouts | None = None

    def setup(self, stage: str) -> None:
        """Opens the folders and splits the problems, once for all stages."""
        if self.stores:
            return
        store = AnnotationStore(self.folder)
        self.stores = [store] if self.val_folder is None else [store, AnnotationStore(self.val_folder)]
        every = range(len(store))
        val_questions = set(self.stores[-1].questions) if self.val_folder is not None else set()
        held_out = {i for i in every if store.questions[i] in val_questions or self._splits_off(store.questions[i])}
        training = self._without_uniform(store, [i for i in every if i not in held_out], self.leave_out_uniform)
        training = self._that_fit(store, training)
        if not training:
            raise UserError(
                f"none of the {len(store)} annotated problems in {self.folder} is left to train on: {len(held_out)} are for "
                "validation, and the rest are too long, all right or all wrong; annotate more, or set leave_out_uniform to false"
            )
        self.train_problems = AnnotatedRollouts(store, training, self.memory_limit)
        val_store, candidates = (store, sorted(held_out)) if self.val_folder is None else (self.stores[1], None)
        candidates = list(range(len(val_store))) if candidates is None else candidates
        validation = self._that_fit(val_store, self._without_uniform(val_store, candidates, self.leave_out_uniform_val))
        if not validation and (self.val_folder is not None or self.val_share > 0):
            raise UserError(
                f"no annotated problem of {val_store.folder} is left to validate on; raise val_share (0 for no validation) or "
                "annotate more problems"
            )
        self.val_problems = AnnotatedRollouts(val_store, validation, self.memory_limit) if validation else None

    def fingerprint(self) -> str:
        """16 hex characters of the annotated problems and of how they were annotated."""
        return fingerprint_of_texts(
            text for store in self.stores for text in (store.settings.digest(), *store.questions)
        )

    def require(self, **expected: Any) -> None:
        """Refuses the annotations where one of their settings is not the given one; see `AnnotationStore.require`."""
        for store in self.stores:
            store.require(**expected)

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of similar length in an order of (seed, epoch)."""
        problems = self.train_problems
        assert problems is not None, "setup comes first"
        lengths = self._lengths(problems)
        sampler = LengthGroupedBatches(
            len(problems), lengths.__getitem__, self.batch_size, self.seed, self.pool_batches
        )
        sampler.enter_at(*self.entered)
        return self._loader(problems, sampler)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Every validation problem exactly once, over all devices together; longest batches first."""
        problems = self.val_problems
        if problems is None:
            return []
        return self._loader(problems, LengthSortedBatches(self._lengths(problems), self.val_batch_size))

    def _lengths(self, problems: AnnotatedRollouts) -> list[int]:
        """What batches are sorted by: tokens of the prompts of the module that trains, else characters of the questions.

        Questions of as many characters differ in tokens by a quarter and more, and all that is padding in a batch.
        """
        reader = self._reader()
        return [len(q) for q in problems.questions] if reader is None else reader.prompt_lengths(problems.questions)

    def _reader(self) -> PromptReader | None:
        """The module that trains, where there is one."""
        module = None if self.trainer is None else self.trainer.lightning_module
        return module if isinstance(module, PromptReader) else None

    def _that_fit(self, store: AnnotationStore, indices: list[int]) -> list[int]:
        """The problems whose prompt and latents fit in the positions of the module; the others are counted."""
        reader = self._reader()
        if reader is None or reader.max_positions is None or not indices:
            return indices
        prompts = reader.prompt_lengths([store.questions[i] for i in indices])
        long = {i for i, n in zip(indices, prompts, strict=True) if n + store.num_steps[i] > reader.max_positions}
        if long:
            rank_zero_warn(
                f"{len(long)} of {len(indices)} problems of {store.folder} are left out, such as {store.problem_ids[min(long)]}: "
                f"prompt and latents do not fit in the reward model's {reader.max_positions} positions."
            )
        return [i for i in indices if i not in long]

    def _loader(self, problems: AnnotatedRollouts, sampler: Any) -> DataLoader[Any]:
        # A sampler of index lists in place of a batch sampler: Lightning then sets its epoch and leaves it in place.
        return DataLoader(
            problems,
            batch_size=None,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _splits_off(self, question: str) -> bool:
        if self.val_folder is not None:
            return False
        return int(problem_id_from_question(question), 16) / 2**64 < self.val_share

    @staticmethod
    def _without_uniform(store: AnnotationStore, indices: list[int], leave_out: bool) -> list[int]:
        if not leave_out:
            return indices
        return [i for i in indices if not (store.all_right[i] or store.all_wrong[i])]


class AnnotatedRollouts(Dataset[AnnotatedBatch]):
    """Problems of a store; an item is the batch of the given numbers.

    Args:
        store: Where they are.
        indices: Which of them, by their number in the store.
        memory_limit: Bytes of latents to keep once read.

    Raises:
        UserError: One of them has no latent in any rollout; or, when it is read, no value although values were asked for.
    """

    def __init__(self, store: AnnotationStore, indices: list[int], memory_limit: int = 0) -> None:
        self.store, self.indices, self.free = store, indices, memory_limit
        self.kept: dict[int, AnnotatedProblem] = {}
        empty = [store.problem_ids[i] for i in indices if store.num_steps[i] == 0]
        if empty:
            raise UserError(
                f"problem {empty[0]} in {store.folder} has no valid step (no rollout has a latent), and so have {len(empty) - 1} "
                "others; annotate them again, or leave them out of the annotation's data"
            )

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def questions(self) -> list[str]:
        """The question of every item."""
        return [self.store.questions[i] for i in self.indices]

    def __getitem__(self, batch: list[int]) -> AnnotatedBatch:
        collated = collate([self._problem(index) for index in batch])
        has_values = self.store.settings.num_continuations > 0
        require_valid_steps(collated.valued if has_values else collated.mask, collated.problem_ids)
        return collated

    def _problem(self, index: int) -> AnnotatedProblem:
        if index in self.kept:
            return self.kept[index]
        problem: AnnotatedProblem = self.store[self.indices[index]]
        size = problem.latents.nbytes + problem.values.nbytes
        if size <= self.free:
            self.free -= size
            self.kept[index] = problem
        return problem
