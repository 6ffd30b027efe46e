"""Training of a CODI backbone: chain-of-thought, distilled by one model into its own latents."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from latent_tts.backbones.codi import Codi
from latent_tts.backbones.lora import LoRA
from latent_tts.backbones.training import load_for_training
from latent_tts.errors import UserError
from latent_tts.problems import ReasoningExample
from latent_tts.training.codi import (
    Distillation,
    DistillationForms,
    DistillationLosses,
    Lesson,
    build_lessons,
    collate_lessons,
    distillation_losses,
)
from latent_tts.training.optimization import Optimization
from lightning_modules.backbone_module import BackboneModule
from lightning_modules.hyperparameters import options_of

DEFAULT_FORMS = DistillationForms()
DEFAULT_DISTILLATION = Distillation()
DEFAULT_OPTIMIZATION = Optimization()


class CodiModule(BackboneModule):
    """Trains a CODI from any Hugging Face causal LM, best from one that can reason in writing, or goes on from a CODI.

    The loss of an example is

        student_factor x cross-entropy of its answer after latents, mean over its tokens
        + teacher_factor x cross-entropy of its steps and answer, mean over their tokens
        + distillation.factor x distance of the student's hidden states from the teacher's (`latent_tts.training.codi`)

    and every example of the global batch counts the same; see TrainingModule for what that is independent of.

    Args:
        backbone: Folder or hub id of the causal LM (or CODI) to start from.
        num_latents: Latent thoughts before an answer.
        prompt_form: Student's prompt, up to the start-of-thought token; by default the published one.
        forms: Texts around question, steps and answer.
        projector: Whether a fresh CODI gets a projector between hidden state and next latent (by default it does); null takes
            what a CODI has that training goes on from.
        projector_hidden_size: Inner width of a fresh projector; null takes that of the model, or of the CODI.
        projector_dropout: Dropout of a fresh projector, in training; null takes none, or that of the CODI.
        student_factor: Weight of the student's cross-entropy.
        teacher_factor: Weight of the teacher's cross-entropy.
        distillation: How the student's hidden states are drawn to the teacher's.
        left_padding: Reproduces prompts padded on the left without position ids, where a row's positions count from where its
            padding begins: for checkpoints that were trained that way.
        optimization: Optimizer and learning rate.
        global_batch_size: Examples per optimizer step: micro batch x accumulated batches x processes. The number of
            accumulated batches is derived from it.
        lora: Adapters to train in place of all weights (the projector is always trained); null trains all weights.
        max_answer_tokens: Tokens a validation answer may have.
        seed: Seed of the fresh weights and of the draws made in training (dropout).
    """

    backbone: Codi
    logged_metrics = (
        *BackboneModule.logged_metrics,
        "train/student_loss",
        "train/teacher_loss",
        "train/distillation_loss",
    )

    def __init__(
        self,
        backbone: str,
        num_latents: int = 6,
        prompt_form: str | None = None,
        forms: DistillationForms = DEFAULT_FORMS,
        projector: bool | None = None,
        projector_hidden_size: int | None = None,
        projector_dropout: float | None = None,
        student_factor: float = 1.0,
        teacher_factor: float = 1.0,
        distillation: Distillation = DEFAULT_DISTILLATION,
        left_padding: bool = False,
        optimization: Optimization = DEFAULT_OPTIMIZATION,
        global_batch_size: int = 128,
        lora: LoRA | None = None,
        max_answer_tokens: int = 16,
        seed: int = 0,
    ) -> None:
        fields = {
            "projector": projector,
            "projector_hidden_size": projector_hidden_size,
            "projector_dropout": projector_dropout,
        }
        config = {name: value for name, value in fields.items() if value is not None}
        super().__init__(
            backbone=load_for_training(Codi, backbone, num_latents, prompt_form, config, seed),
            source=backbone,
            optimization=optimization,
            global_batch_size=global_batch_size,
            lora=lora,
            max_answer_tokens=max_answer_tokens,
            seed=seed,
        )
        self.forms, self.left_padding = forms, left_padding
        self.student_factor, self.teacher_factor, self.distillation = student_factor, teacher_factor, distillation
        self.save_hyperparameters(options_of(self, locals()))

    def losses(self, batch: Sequence[ReasoningExample]) -> Tensor:
        """The loss of every example: (B,)."""
        lessons = build_lessons(self.backbone, batch, self.forms)
        if self.left_padding:
            self.require_room_beside_padding(lessons)
        parts = self.parts(lessons, count_padding=self.left_padding)
        named = {"student": parts.student, "teacher": parts.teacher, "distillation": parts.distillation}
        self.log_dict(
            {f"train/{name}_loss": loss.detach().mean() for name, loss in named.items()}, batch_size=len(batch)
        )
        return self.weighted(parts, self.distillation_share())

    def validation_losses(self, batch: Sequence[ReasoningExample]) -> Tensor:
        """The loss of every example, (B,), with the distillation at its full weight, whatever the step."""
        return self.weighted(self.parts(build_lessons(self.backbone, batch, self.forms)), share=1.0)

    def parts(self, lessons: Sequence[Lesson], count_padding: bool = False) -> DistillationLosses:
        """The three losses of every example."""
        batch = collate_lessons(lessons, self.backbone.num_latents, self.backbone.pad_token_id, self.device)
        return distillation_losses(self.backbone, batch, self.distillation, count_padding)

    def weighted(self, parts: DistillationLosses, share: float) -> Tensor:
        """The loss of every example, (B,), with this share of the distillation's weight."""
        distilled = self.distillation.factor * share * parts.distillation
        return self.student_factor * parts.student + self.teacher_factor * parts.teacher + distilled

    def training_positions(self, examples: Sequence[ReasoningExample]) -> list[int]:
        lessons = build_lessons(self.backbone, examples, self.forms)
        return [max(self._prompt_and_rest(lesson, len(lesson.student_prompt))) for lesson in lessons]

    def require_room_beside_padding(self, lessons: Sequence[Lesson]) -> None:
        """UserError where positions that count padding on the left go beyond the model's.

        Every prompt then ends where the longest of the batch does, and what is written after it goes on from there.
        """
        longest = max(len(lesson.student_prompt) for lesson in lessons)
        needed, limit = max(max(self._prompt_and_rest(lesson, longest)) for lesson in lessons), self.max_positions
        if limit is not None and needed > limit:
            raise UserError(
                f"left_padding makes a batch of {len(lessons)} examples, the longest prompt of {longest} tokens, take {needed} "
                f"of the model's {limit} positions: give --model.left_padding false, or a lower --data.batch_size."
            )

    def _prompt_and_rest(self, lesson: Lesson, prompt: int) -> tuple[int, int]:
        """Positions of student and teacher behind a student's prompt of so many positions."""
        teacher_prompt = prompt + len(lesson.teacher_prompt) - len(lesson.student_prompt)
        return (
            prompt + self.backbone.num_latents + len(lesson.student_tail),
            teacher_prompt + len(lesson.teacher_tail),
        )

    def distillation_share(self) -> float:
        """The part of its full weight that the distillation has at this step."""
        if self.distillation.warmup == 0.0:
            return 1.0
        return min(1.0, self.global_step / (self.distillation.warmup * self.trainer.estimated_stepping_batches))
