"""Training of a COCONUT backbone: chain-of-thought first, then the curriculum that turns written steps into latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from latent_tts.backbones.coconut import Coconut
from latent_tts.backbones.lora import LoRA
from latent_tts.backbones.training import load_for_training
from latent_tts.problems import ReasoningExample
from latent_tts.training.coconut_curriculum import Curriculum, build_sequences
from latent_tts.training.differentiable import collate, greedy_texts, token_losses
from latent_tts.training.optimization import Optimization
from lightning_modules.backbone_module import BackboneModule

PUBLISHED_CURRICULUM = Curriculum()


class CoconutModule(BackboneModule):
    """Trains a COCONUT from any Hugging Face causal LM, or from a fresh one made by `commands.fresh_model`.

    The loss is the mean cross-entropy over all label tokens of the global batch; see BackboneModule for what it is
    independent of, and for what is not supported.

    Args:
        backbone: Folder or hub id of the causal LM to start from.
        curriculum: Which stage an epoch trains.
        global_batch_size: Examples per optimizer step: micro batch x accumulated batches x processes. The number of
            accumulated batches is derived from it.
        lr: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        betas: Momentum terms of AdamW.
        warmup_steps: Optimizer steps over which the learning rate rises from 0, at the start and after each reset.
        decay_fraction: Last part of training over which the learning rate falls linearly to 0; 0 keeps it constant.
        reset_optimizer: Whether every new stage starts with a fresh optimizer state, as published.
        lora: Adapters to train in place of all weights; null trains all of them.
        max_answer_tokens: Tokens a validation answer may have; chain-of-thought writes its steps within them too.
        seed: Seed of the draws made in training (dropout, mixing of stages).
    """

    backbone: Coconut

    def __init__(
        self,
        backbone: str,
        curriculum: Curriculum = PUBLISHED_CURRICULUM,
        global_batch_size: int = 128,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup_steps: int = 0,
        decay_fraction: float = 0.0,
        reset_optimizer: bool = True,
        lora: LoRA | None = None,
        max_answer_tokens: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(
            backbone=load_for_training(Coconut, backbone, curriculum.max_latents),
            source=backbone,
            optimization=Optimization(
                lr=lr,
                weight_decay=weight_decay,
                betas=betas,
                warmup_steps=warmup_steps,
                schedule="linear" if decay_fraction else "constant",
                decay_share=decay_fraction or 1.0,
            ),
            global_batch_size=global_batch_size,
            lora=lora,
            max_answer_tokens=max_answer_tokens,
            seed=seed,
        )
        self.curriculum, self.reset_optimizer = curriculum, reset_optimizer
        self.save_hyperparameters({"backbone": backbone, "curriculum": asdict(curriculum)})
        self.stage = -1  # the stage the last epoch trained; -1 before the first
        self.stage_start_step = 0

    # Stages -----------------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        stage = self.curriculum.stage(self.current_epoch)
        if stage == self.stage:
            return
        self.print(f"epoch {self.current_epoch}: {self.curriculum.describe(stage)}")
        if self.reset_optimizer and self.stage >= 0:
            self.start_afresh(self.trainer.optimizers[0])
        self.stage = stage

    def start_afresh(self, optimizer: torch.optim.Optimizer) -> None:
        """Forget the optimizer's state and begin a new warm-up with the next step."""
        optimizer.state.clear()
        self.stage_start_step = self.global_step
        for group in optimizer.param_groups:
            group["lr"] = self.optimization.lr * self.lr_factor(self.global_step)

    def lr_factor(self, step: int) -> float:
        """Warm-up (again after a reset of the optimizer), constant, linear decay to 0 at the end of training."""
        total = self.trainer.estimated_stepping_batches
        return self.optimization.lr_factor(step, total, warmup_start=self.stage_start_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["coconut_stage"] = {"stage": self.stage, "stage_start_step": self.stage_start_step}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.stage = checkpoint["coconut_stage"]["stage"]
        self.stage_start_step = checkpoint["coconut_stage"]["stage_start_step"]

    # Training ---------------------------------------------------------------------------------------------------------

    def losses(self, batch: Sequence[ReasoningExample]) -> Tensor:
        """Cross-entropy of every label token of a micro batch: (labels,).

        Which stage an example is trained at is a function of (seed, epoch, question).
        """
        backbone = self.backbone
        stages = [self.curriculum.draw_stage(self.stage, f"{self.epoch_key}/{example.question}") for example in batch]
        sequences = build_sequences(
            examples=batch,
            stages=stages,
            curriculum=self.curriculum,
            encode_prompts=backbone.encode_prompts,
            encode=backbone.encode,
            end_of_thought_id=backbone.end_of_thought_id,
            eos_token_id=backbone.eos_token_id,
        )
        self.log("stage", float(self.stage), prog_bar=True, batch_size=1)
        return token_losses(backbone, collate(sequences, backbone.pad_token_id, self.device))

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
