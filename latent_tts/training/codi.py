"""CODI's self-distillation (arXiv 2502.21074): one model is teacher, with written steps, and student, with latents.

What the two prompts begin with, the question, is encoded once. Each block of columns is padded on the right:

    question     student                               teacher
    q q q q q    s | h h h h h h | e the answer is 72 x    p t t t t the answer is 72 x
    q q q . .    s | h h h h h h | e the answer is 8 x .   p t t the answer is 8 x . . .

Both predict the answer, the teacher also its steps t. At the column that predicts the first token of the answer's number, the
student's hidden state of every layer is drawn to the teacher's. Every loss is one number per example: neither padding nor the
other rows of a batch enter it (but for the deviation over a batch, where it is asked for).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, smooth_l1_loss

from latent_tts.attention.padding import pad_right
from latent_tts.backbones.base import LatentBackbone
from latent_tts.errors import UserError
from latent_tts.problems import ReasoningExample
from latent_tts.training.differentiable import Thought


@dataclass(frozen=True)
class DistillationForms:
    """The texts around question, steps and answer."""

    teacher_prompt: str = "{question}\n"
    """What the teacher reads before it writes its steps."""
    step: str = "{step}\n"
    """A written step."""
    answer: str = "The answer is: {answer}"
    """What teacher and student write at the end."""

    def __post_init__(self) -> None:
        for name, field in (("teacher_prompt", "{question}"), ("step", "{step}"), ("answer", "{answer}")):
            if field not in getattr(self, name):
                raise UserError(f"The form {name} must hold {field}, got {getattr(self, name)!r}.")


@dataclass(frozen=True)
class Distillation:
    """How the student's hidden states are drawn to the teacher's."""

    factor: float = 1.0
    """Weight of the distillation beside the two cross-entropies."""
    warmup: float = 0.0
    """Share of all optimizer steps over which that weight rises from 0, for a start whose teacher cannot reason in writing yet:
    until it can, its hidden states would only spoil the student's."""
    embeddings: bool = True
    """Whether what goes into the first block counts as a layer too, as published."""
    deviation: Literal["state", "batch"] = "state"
    """What the distance is divided by: the standard deviation of the teacher's own state over its dimensions, or, as published,
    of the teacher's states of a whole micro batch, so that an example's loss depends on the others."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.warmup <= 1.0:
            raise UserError(f"distillation.warmup is a share of the training and must be in [0, 1], got {self.warmup}.")
        if self.deviation not in ("state", "batch"):
            raise UserError(f"distillation.deviation must be state or batch, got {self.deviation!r}.")


DEFAULT_DISTILLATION = Distillation()


@dataclass(frozen=True)
class Lesson:
    """One example as tokens, for the student and for the teacher."""

    student_prompt: list[int]  # question, start-of-thought token
    student_tail: list[int]  # end-of-thought token, then the labels: answer, end of text
    teacher_prompt: list[int]  # question, and what opens the steps
    teacher_tail: list[int]  # labels only: steps, answer, end of text
    number_length: int  # tokens from the first of the answer's number to the end of text, at the end of both tails

    @property
    def num_shared(self) -> int:
        """Tokens that both prompts begin with; each keeps one of its own at least."""
        limit = min(len(self.student_prompt), len(self.teacher_prompt)) - 1
        pairs = zip(self.student_prompt[:limit], self.teacher_prompt, strict=False)
        return next((i for i, (mine, yours) in enumerate(pairs) if mine != yours), limit)


def build_lessons(
    backbone: LatentBackbone, examples: Sequence[ReasoningExample], forms: DistillationForms
) -> list[Lesson]:
    """Lays out a batch of examples. Prompts, steps and answers are tokenized one by one, so that the tokens of an answer do
    not depend on what stands before it."""
    student_prompts = backbone.encode_prompts([example.question for example in examples])
    teacher_prompts = backbone.encode([forms.teacher_prompt.replace("{question}", e.question) for e in examples])
    steps = iter(backbone.encode([forms.step.replace("{step}", step) for e in examples for step in e.steps]))
    lessons = []
    for example, student, teacher in zip(examples, student_prompts, teacher_prompts, strict=True):
        answer, number_length = _encode_answer(backbone, forms.answer, example.answer)
        written = [token for _ in example.steps for token in next(steps)]
        lessons.append(
            Lesson(student, [backbone.end_of_thought_id, *answer], teacher, [*written, *answer], number_length)
        )
    return lessons


def _encode_answer(backbone: LatentBackbone, form: str, answer: str) -> tuple[list[int], int]:
    """Tokens of the answer's text and the end of text, and how many of them begin with the number's first."""
    text = form.replace("{answer}", answer)
    encoded = backbone.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, ends = [*encoded["input_ids"], backbone.eos_token_id], [end for _, end in encoded["offset_mapping"]]
    first = next(i for i, end in enumerate(ends) if end > form.index("{answer}"))  # a blank may be part of it
    return ids, len(ids) - first


@dataclass(frozen=True)
class Written:
    """Padded rows of written tokens."""

    ids: Tensor  # (B, L)
    mask: Tensor  # (B, L) bool, true at real tokens
    labels: Tensor  # (B, L) bool, true at tokens that are predicted, each from the column before it
    read: Tensor  # (B,), the column that predicts the first token of the answer's number

    def to(self, device: torch.device | str) -> Written:
        return Written(self.ids.to(device), self.mask.to(device), self.labels.to(device), self.read.to(device))


@dataclass(frozen=True)
class DistillationBatch:
    """Padded lessons; masks are bool, true at real tokens."""

    question_ids: Tensor  # (B, Q), what both prompts begin with
    question_mask: Tensor  # (B, Q)
    prompt_ids: Tensor  # (B, P), the rest of the student's prompt
    prompt_mask: Tensor  # (B, P)
    student: Written
    teacher: Written  # the rest of its prompt, steps and answer
    num_latents: int


def collate_lessons(
    lessons: Sequence[Lesson], num_latents: int, pad_token_id: int, device: torch.device | str = "cpu"
) -> DistillationBatch:
    shared = [lesson.num_shared for lesson in lessons]
    if min(shared) == 0:  # a row's first column must be real: then nothing is shared
        shared = [0] * len(lessons)
    rows = list(zip(lessons, shared, strict=True))
    numbers = [lesson.number_length for lesson in lessons]
    question_ids, question_mask = pad_right([lesson.student_prompt[:n] for lesson, n in rows], pad_token_id)
    prompt_ids, prompt_mask = pad_right([lesson.student_prompt[n:] for lesson, n in rows], pad_token_id)
    student = _written([lesson.student_tail for lesson in lessons], [1] * len(lessons), numbers, pad_token_id)
    teacher = _written(
        [lesson.teacher_prompt[n:] + lesson.teacher_tail for lesson, n in rows],
        [len(lesson.teacher_prompt) - n for lesson, n in rows],
        numbers,
        pad_token_id,
    )
    return DistillationBatch(
        question_ids=question_ids.to(device),
        question_mask=question_mask.to(device),
        prompt_ids=prompt_ids.to(device),
        prompt_mask=prompt_mask.to(device),
        student=student.to(device),
        teacher=teacher.to(device),
        num_latents=num_latents,
    )


def _written(
    rows: Sequence[Sequence[int]],
    num_given: Sequence[int],
    number_lengths: Sequence[int],
    pad_token_id: int,
) -> Written:
    """Rows whose first `num_given` tokens are no labels."""
    ids, mask = pad_right(rows, pad_token_id)
    labels = mask & (torch.arange(ids.shape[1]) >= torch.tensor(num_given).unsqueeze(-1))
    read = mask.sum(dim=1) - torch.tensor(number_lengths) - 1
    return Written(ids, mask, labels, read)


@dataclass(frozen=True)
class DistillationLosses:
    """One number per example, (B,) each."""

    student: Tensor
    """Mean cross-entropy of the answer, written after latents."""
    teacher: Tensor
    """Mean cross-entropy of steps and answer."""
    distillation: Tensor
    """Distance of the student's hidden states to the teacher's, mean over layers."""


def distillation_losses(
    backbone: LatentBackbone,
    batch: DistillationBatch,
    distillation: Distillation = DEFAULT_DISTILLATION,
    count_padding: bool = False,
) -> DistillationLosses:
    """The three losses of every example of a batch, with gradients.

    Args:
        backbone: Teacher and student.
        batch: Lessons.
        distillation: Which layers are compared, and in which unit.
        count_padding: Whether positions count from where padding on the left would begin, as where no position ids are
            handed to a model with left-padded prompts. Then the other rows of the batch do enter.
    """
    lengths = batch.question_mask.sum(dim=1) + batch.prompt_mask.sum(dim=1)
    student = Thought(backbone, lengths.max() - lengths if count_padding else None)
    if batch.question_ids.shape[1]:
        student.feed(backbone.embed(batch.question_ids), batch.question_mask)
    teacher = student.fork()
    student.think(batch.prompt_ids, batch.prompt_mask, batch.prompt_mask.new_ones(len(lengths), batch.num_latents))
    student_loss, student_states = _write(student, batch.student)
    teacher_loss, teacher_states = _write(teacher, batch.teacher)
    first = 0 if distillation.embeddings else 1
    distance = state_distance(student_states[first:], teacher_states[first:], distillation.deviation)
    return DistillationLosses(student_loss, teacher_loss, distance)


def _write(thought: Thought, written: Written) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of each row's labels (B,), and the states at `read` of every layer, embeddings first (layers, B, D)."""
    layers = thought.feed_layers(thought.backbone.embed(written.ids), written.mask)
    labelled = written.labels[:, 1:]
    logits = thought.backbone.logits(layers[-1][:, :-1][labelled])  # (labels, V)
    losses = cross_entropy(logits.float(), written.ids[:, 1:][labelled], reduction="none")
    sums = losses.new_zeros(len(labelled)).index_add(0, labelled.nonzero()[:, 0], losses)
    rows = torch.arange(len(labelled), device=labelled.device)
    return sums / labelled.sum(dim=1), torch.stack([hidden[rows, written.read] for hidden in layers])


def state_distance(student: Tensor, teacher: Tensor, deviation: Literal["state", "batch"] = "state") -> Tensor:
    """Smooth L1 distance in units of the teacher's standard deviation, mean over layers: (layers, B, D) twice to (B,).

    The teacher gets no gradient. `Distillation.deviation` says of what the deviation is.
    """
    teacher = teacher.detach().float()
    distance = smooth_l1_loss(student.float(), teacher, reduction="none").mean(dim=-1)  # (layers, B)
    unit = teacher.std(dim=-1) if deviation == "state" else teacher.std(dim=(1, 2)).unsqueeze(-1)
    return (distance / unit).mean(dim=0)
