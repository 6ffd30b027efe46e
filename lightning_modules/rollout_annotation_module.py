"""Annotation of rollouts for the latent reward model, as a `predict` loop: problems in, annotated problems out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lightning.pytorch import LightningModule

from latent_tts.annotation.prefix_values import annotate, check_sizes, continuation_parts
from latent_tts.annotation.records import AnnotatedProblem
from latent_tts.annotation.settings import AnnotationOptions, AnnotationSettings, LastValue, LatentDtype
from latent_tts.answers import AnswerRule
from latent_tts.backbones import LatentBackbone, load_backbone
from latent_tts.backbones.kinds import KindName
from latent_tts.engine.engine import RolloutEngine
from latent_tts.engine.memory import DoesNotFitError, FittingParts
from latent_tts.engine.prompts import PromptRoom
from latent_tts.errors import UserError
from latent_tts.problems import Problem
from latent_tts.sampling import Sampler


@dataclass
class AnnotationCounts:
    """How an annotation fares, on this process: problems in the folder at the start included, but for their kind."""

    num_problems: int = 0
    num_annotated: int = 0
    num_all_right: int = 0
    num_all_wrong: int = 0
    token_steps: int = 0

    def update(self, problem: AnnotatedProblem) -> None:
        """Counts a problem that was written."""
        self.num_problems += 1
        self.num_annotated += 1
        self.num_all_right += problem.all_right
        self.num_all_wrong += problem.all_wrong


class RolloutAnnotationModule(LightningModule):
    """Draws N rollouts of every problem and values each of their latent prefixes by M continuations.

    Problems whose rollouts are all right or all wrong are kept and flagged in the store. Training leaves them out by its own
    option; `continue_uniform` decides whether continuations are spent on them. What is written depends on none of `max_rows`,
    the batch size or the devices.

    Args:
        backbone: Folder or hub id of the latent reasoning model (published layout).
        sampler: How rollouts and continuations are made different: AdditiveGaussianNoise or MonteCarloDropout.
        num_rollouts: N, rollouts of each problem.
        num_continuations: M, continuations of each prefix; 0 stores only whether the rollouts are right.
        seed: Seed of every random draw.
        max_answer_tokens: Answers are cut off after this many tokens.
        kind: Kind of the backbone, where its files do not say it.
        num_latents: Latent thoughts per rollout (for CoLaR: the maximum); by default what the checkpoint says.
        dtype: Type the weights are held in and computed with; bfloat16 takes half the memory, and less time where the processor
            multiplies it faster (docs/performance.md says what it does to answers).
        last: Value of a rollout's last prefix: the correctness of its own answer, or a Monte-Carlo estimate where the
            sampler leaves anything to chance after the last thought (see latent_tts/annotation/prefix_values.py).
        answer_rule: When an answer equals the gold answer: tolerance compares values, strict wants equal floats.
        max_rows: Continuations that are in memory at once.
        latent_dtype: How latents are stored.
        continue_uniform: Whether problems whose rollouts are all right or all wrong get continuations too; without, only
            the last prefixes of their rollouts have a value.

    Raises:
        UserError: Any of these does not exist, does not fit the others, or is out of its range.
    """

    def __init__(
        self,
        backbone: str | LatentBackbone,
        sampler: Sampler,
        num_rollouts: int = 8,
        num_continuations: int = 16,
        seed: int = 0,
        max_answer_tokens: int = 64,
        kind: KindName | None = None,
        num_latents: int | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        last: LastValue = "own",
        answer_rule: AnswerRule = "tolerance",
        max_rows: int = 512,
        latent_dtype: LatentDtype = "float32",
        continue_uniform: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(num_rollouts, num_continuations, max_rows)
        if sampler.is_greedy:
            raise UserError(
                f"Every rollout and every continuation of {sampler!r} is the greedy one, from which no reward model can learn: "
                "give a sampler that draws, such as --model.sampler AdditiveGaussianNoise --model.sampler.sigma 0.5."
            )
        self.num_rollouts, self.num_continuations, self.seed = num_rollouts, num_continuations, seed
        self.last, self.answer_rule, self.max_rows, self.latent_dtype = last, answer_rule, max_rows, latent_dtype
        self.continue_uniform = continue_uniform
        self.backbone = load_backbone(backbone, kind, num_latents, dtype) if isinstance(backbone, str) else backbone
        if self.backbone.num_latents == 0:
            raise UserError(
                f"A {self.backbone.kind} backbone writes its reasoning and has no latent thoughts to annotate: name "
                "a latent reasoning model."
            )
        self.backbone.freeze()
        self.engine = RolloutEngine(self.backbone, sampler, max_answer_tokens)
        self.metrics = AnnotationCounts()
        self._problem_parts = FittingParts("problems", " A smaller --data.batch_size saves the attempt.")
        self._continuation_parts = continuation_parts()

    def annotation_settings(self, data: str, precision: str = "32-true") -> AnnotationSettings:
        """Everything the annotations depend on.

        Args:
            data: A description of the problems.
            precision: The trainer's.
        """
        backbone = self.backbone
        return AnnotationSettings(
            backbone_fingerprint=backbone.fingerprint(),
            backbone_kind=backbone.kind,
            hidden_size=backbone.hidden_size,
            num_latents=backbone.num_latents,
            num_rollouts=self.num_rollouts,
            num_continuations=self.num_continuations,
            sampler=self.engine.sampler.settings(),
            seed=self.seed,
            max_answer_tokens=self.engine.max_answer_tokens,
            data=data,
            latent_dtype=self.latent_dtype,
            extra=AnnotationOptions(self.last, self.answer_rule, precision, self.continue_uniform),
        )

    def prompt_rooms(self) -> list[PromptRoom]:
        """How long a question may be, for each model that reads it."""
        return [PromptRoom.of("backbone", self.backbone, self.engine.max_answer_tokens)]

    def predict_step(self, batch: list[Problem], batch_idx: int = 0) -> list[AnnotatedProblem]:
        """One annotated problem a problem, in the batch's order; a batch that does not fit in memory is cut in parts.

        Raises:
            UserError: Not even one problem fits in memory.
        """
        try:
            parts = self._problem_parts.run(lambda first, end: self._annotate(batch[first:end]), len(batch))
        except DoesNotFitError as error:
            raise UserError(
                f"Not even one problem with its {self.num_rollouts} rollouts and the {self.num_continuations} "
                f"continuations of a prefix fits in the memory of {self.device}: take --model.dtype bfloat16, a smaller "
                "--model.num_rollouts or --model.max_answer_tokens, or a device with more room."
            ) from error
        return [problem for part in parts for problem in part]

    def _annotate(self, batch: Sequence[Problem]) -> list[AnnotatedProblem]:
        found = annotate(
            self.engine,
            [problem.question for problem in batch],
            [problem.gold for problem in batch],
            self.num_rollouts,
            self.num_continuations,
            self.seed,
            [problem.problem_id for problem in batch],
            self.last,
            self.answer_rule,
            self.max_rows,
            self.continue_uniform,
            self._continuation_parts,
        )
        self.metrics.token_steps += int(found.token_steps.sum())
        latents, num_latents = found.rollouts.latents.cpu(), found.rollouts.num_latents.cpu()
        return [
            AnnotatedProblem(
                problem_id=problem.problem_id,
                question=problem.question,
                gold=problem.gold,
                latents=latents[i],
                num_latents=num_latents[i],
                answers=found.rollouts.answers[i],
                correct=found.correct[i],
                values=found.values[i],
            )
            for i, problem in enumerate(batch)
        ]

    def progress_news(self) -> str:
        """How the rollouts fare so far, on this process."""
        counts = self.metrics
        if not counts.num_annotated:
            return ""
        right, wrong = counts.num_all_right / counts.num_annotated, counts.num_all_wrong / counts.num_annotated
        return f"all right {100 * right:.0f} % · all wrong {100 * wrong:.0f} %"
