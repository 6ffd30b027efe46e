"""Training of a COCONUT backbone: chain-of-thought first, then the curriculum that turns written steps into latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from latent_tts.backbones.coconut import Coconut
from latent_tts.backbones.lora import LoRA
from latent_tts.backbones.training import load_for_training
from latent_tts.problems import ReasoningExample
from latent_tts.training.coconut_curriculum import Curriculum, ThoughtSequence, build_sequences
from latent_tts.training.differentiable import collate, greedy_texts, token_losses
from latent_tts.training.optimization import Optimization
from lightning_modules.backbone_module import BackboneModule
from lightning_modules.hyperparameters import options_of

PUBLISHED_CURRICULUM = Curriculum()
DEFAULT_OPTIMIZATION = Optimization(reset="stage")


class CoconutModule(BackboneModule):
    """Trains a COCONUT from any Hugging Face causal LM, or from a fresh one made by `commands.fresh_model`.

    The loss is the mean cross-entropy over all label tokens of the global batch; see TrainingModule for what it is
    independent of, and for what is not supported.

    Args:
        backbone: Folder or hub id of the causal LM to start from.
        curriculum: Which stage an epoch trains.
        optimization: Optimizer and learning rate; AdamW may be reset with every stage, or with every epoch, as published.
        global_batch_size: Examples per optimizer step: micro batch x accumulated batches x processes. The number of
            accumulated batches is derived from it.
        lora: Adapters to train in place of all weights; null trains all of them.
        max_answer_tokens: Tokens a validation answer may have; chain-of-thought writes its steps within them too.
        seed: Seed of the draws made in training (dropout, mixing of stages).
    """

    backbone: Coconut
    monitor = "val/final_accuracy"
    logged_metrics = (*BackboneModule.logged_metrics, "stage", "val/final_accuracy")

    def __init__(
        self,
        backbone: str,
        curriculum: Curriculum = PUBLISHED_CURRICULUM,
        optimization: Optimization = DEFAULT_OPTIMIZATION,
        global_batch_size: int = 128,
        lora: LoRA | None = None,
        max_answer_tokens: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(
            backbone=load_for_training(Coconut, backbone, curriculum.max_latents),
            source=backbone,
            optimization=optimization,
            global_batch_size=global_batch_size,
            lora=lora,
            max_answer_tokens=max_answer_tokens,
            seed=seed,
        )
        self.curriculum = curriculum
        self.stage = -1  # the stage the last epoch trained; -1 before the first
        self.save_hyperparameters(options_of(self, locals()))

    # Stages -----------------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        stage = self.curriculum.stage(self.current_epoch)
        if stage != self.stage:
            self.print(f"epoch {self.current_epoch}: {self.curriculum.describe(stage)}")
        self.stage = stage
        super().on_train_epoch_start()

    def key_of_reset(self) -> int:
        return self.stage if self.optimization.reset == "stage" else super().key_of_reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["training"]["stage"] = self.stage

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.stage = checkpoint["training"]["stage"]

    # Training ---------------------------------------------------------------------------------------------------------

    def losses(self, batch: Sequence[ReasoningExample]) -> Tensor:
        """Cross-entropy of every label token of a micro batch: (labels,).

        Which stage an example is trained at is a function of (seed, epoch, question).
        """
        stages = [self.curriculum.draw_stage(self.stage, f"{self.epoch_key}/{example.question}") for example in batch]
        self.log("stage", float(self.stage), prog_bar=True, batch_size=1)
        return self.losses_at(batch, stages)

    def validation_losses(self, batch: Sequence[ReasoningExample]) -> Tensor:
        """At the stage being trained, every example."""
        return self.losses_at(batch, [self.validated_stage] * len(batch))

    def losses_at(self, batch: Sequence[ReasoningExample], stages: Sequence[int]) -> Tensor:
        """Cross-entropy of every label token of examples, each at its stage: (labels,)."""
        return token_losses(
            self.backbone, collate(self.sequences(batch, stages), self.backbone.pad_token_id, self.device)
        )

    def sequences(self, batch: Sequence[ReasoningExample], stages: Sequence[int]) -> list[ThoughtSequence]:
        """Examples as tokens, each at its stage."""
        backbone = self.backbone
        return build_sequences(
            examples=batch,
            stages=stages,
            curriculum=self.curriculum,
            encode_prompts=backbone.encode_prompts,
            encode=backbone.encode,
            end_of_thought_id=backbone.end_of_thought_id,
            eos_token_id=backbone.eos_token_id,
        )

    def training_positions(self, examples: Sequence[ReasoningExample]) -> list[int]:
        stages = [self.sequences(examples, [stage] * len(examples)) for stage in range(self.curriculum.final_stage + 1)]
        return [
            max(len(row.prompt_ids) + row.num_latents + len(row.tail_ids) for row in rows)
            for rows in zip(*stages, strict=True)
        ]

    # Validation -------------------------------------------------------------------------------------------------------

    def generate(self, questions: Sequence[str]) -> list[str]:
        """Greedy answers after as many latents as the stage has; steps may still be written."""
        num_latents = self.curriculum.num_latents(self.validated_stage)
        return greedy_texts(self.backbone, questions, num_latents, self.max_answer_tokens)

    def on_validation_epoch_end(self) -> None:
        """`val/final_accuracy` is 0 before the final stage: the best checkpoint is one that thinks in latents alone."""
        final = self.validated_stage == self.curriculum.final_stage
        accuracy = self.val_accuracy.compute() if final else torch.zeros(())
        self.log("val/final_accuracy", accuracy, sync_dist=True)

    @property
    def validated_stage(self) -> int:
        """The stage being trained; the final one where nothing was trained yet."""
        return self.stage if self.stage >= 0 else self.curriculum.final_stage
