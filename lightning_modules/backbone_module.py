"""What the trainings of backbones share beside `TrainingModule`: adapters, a loss of terms, greedy validation, the export."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from datamodules.positions import PositionLimit
from latent_tts.answers import answers_equal, parse_answer
from latent_tts.backbones.adapters import save_adapters
from latent_tts.backbones.base import LatentBackbone
from latent_tts.backbones.lora import LoRA, add_lora, hold_frozen_layers_in_bfloat16, merged
from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError
from latent_tts.problems import ReasoningExample
from latent_tts.training.optimization import Optimization
from lightning_modules.training_module import TrainingModule


class BackboneModule(TrainingModule):
    """Trains a backbone. A subclass loads it (`load_for_training`) and says what the losses of a micro batch are.

    A term of the loss is whatever `losses` gives a number for (a label, or an example). Validation generates answers greedily.

    Args:
        backbone: The loaded backbone, in training mode.
        source: Folder or hub id it was loaded from: stored adapters name it as their base.
        optimization: Optimizer and learning rate.
        global_batch_size: Examples per optimizer step: micro batch x accumulated batches x processes. The number of
            accumulated batches is derived from it.
        lora: Adapters to train in place of all weights; None trains all of them.
        max_answer_tokens: Tokens a validation answer may have.
        seed: Seed of the draws made in training.
    """

    logged_metrics = (*TrainingModule.logged_metrics, "val/accuracy", "val/loss")

    def __init__(
        self,
        backbone: LatentBackbone,
        source: str,
        optimization: Optimization,
        global_batch_size: int,
        lora: LoRA | None = None,
        max_answer_tokens: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(optimization, global_batch_size, seed)
        self.lora, self.max_answer_tokens, self.source = lora, max_answer_tokens, source
        if lora is not None:
            add_lora(backbone, lora, seed)
        self.backbone = backbone
        self.val_accuracy, self.val_loss = MeanMetric(), MeanMetric()
        # Buffers are constants here (rotary frequencies): sending them would need equally many batches on all processes.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    @abstractmethod
    def losses(self, batch: Sequence[ReasoningExample]) -> Tensor:
        """The terms of a micro batch's loss: (terms,), with gradients."""

    def validation_losses(self, batch: Sequence[ReasoningExample]) -> Tensor | None:
        """The terms of the loss of given solutions, (terms,), with nothing drawn; None where a training has no such loss."""
        return self.losses(batch)

    def summed_loss(self, batch: Sequence[ReasoningExample]) -> tuple[Tensor, int]:
        losses: Tensor = self.backbone(self.losses, batch)
        return losses.sum(), losses.numel()

    @property
    def commits(self) -> dict[str, str]:
        return {} if self.backbone.commit is None else {"backbone": self.backbone.commit}

    @property
    def trained(self) -> LatentBackbone:
        return self.backbone

    @property
    def can_be_sharded(self) -> bool:
        return self.lora is None

    # What an example takes of the model's positions: the data module leaves out those that take more than there are --------

    @property
    def max_positions(self) -> int | None:
        """Positions of the backbone; None where there is no end to them."""
        return self.backbone.max_positions

    def validation_positions(self, examples: Sequence[ReasoningExample]) -> list[int]:
        """Positions of each example's prompt, thoughts and longest answer."""
        prompts = self.backbone.encode_prompts([example.question for example in examples])
        return [len(prompt) + self.backbone.num_latents + 1 + self.max_answer_tokens for prompt in prompts]

    def training_positions(self, examples: Sequence[ReasoningExample]) -> list[int]:
        """Positions of each example where training feeds most of it; a training that draws rollouts feeds a whole answer."""
        return self.validation_positions(examples)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.lora is not None and self.trainer.precision == "bf16-mixed":
            hold_frozen_layers_in_bfloat16(self.backbone)

    def export(self, folder: Path, dtype: str = "float32", adapters_only: bool = False) -> None:
        """As `load_backbone` reads it: adapters merged, or alone beside the name of their base."""
        if not adapters_only:
            merged(self.backbone).save_pretrained(folder, dtype=getattr(torch, dtype))
        elif self.lora is None:
            raise UserError("There are no adapters to store alone: all weights were trained.")
        else:
            save_adapters(self.backbone, self.source, folder, getattr(torch, dtype))

    # Validation -------------------------------------------------------------------------------------------------------

    def generate(self, questions: Sequence[str]) -> list[str]:
        """The model's own greedy answers, for validation."""
        engine = RolloutEngine(self.backbone, max_answer_tokens=self.max_answer_tokens)
        return [texts[0] for texts in engine.rollout(questions, num_rollouts=1).texts]

    def validation_step(self, batch: Sequence[ReasoningExample], batch_idx: int) -> list[str]:  # type: ignore[override]
        """The answers, one for each example."""
        texts: list[str] = self.backbone(self.generate, [example.question for example in batch])
        golds = [parse_answer(example.answer) for example in batch]
        right = [answers_equal(parse_answer(text), gold) for text, gold in zip(texts, golds, strict=True)]
        self.val_accuracy.update(torch.tensor(right, dtype=torch.float))
        self.log("val/accuracy", self.val_accuracy, prog_bar=True, batch_size=len(batch))
        self.validate_loss(batch)
        return texts

    def validate_loss(self, batch: Sequence[ReasoningExample]) -> None:
        """Logs `val/loss`, the mean over the terms of the examples whose written solutions fit in the model's positions."""
        limit = PositionLimit(self)
        read = [example for example in batch if limit.fits(example)]
        losses: Tensor | None = self.backbone(self.validation_losses, read) if read else None
        if losses is not None:
            self.val_loss.update(losses.mean(), weight=losses.numel())
            self.log("val/loss", self.val_loss, batch_size=len(batch))
