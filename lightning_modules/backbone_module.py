"""What the training of every backbone shares: an exactly scaled loss, its optimizer, seeded draws, greedy validation."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from latent_tts.answers import answers_equal, parse_answer
from latent_tts.backbones.base import LatentBackbone
from latent_tts.backbones.lora import LoRA, add_lora, hold_frozen_layers_in_bfloat16
from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError
from latent_tts.problems import ReasoningExample
from latent_tts.training.optimization import Optimization, fused_adamw


class BackboneModule(LightningModule):
    """Trains a backbone. A subclass loads it (`load_for_training`) and says what the losses of a micro batch are.

    The loss is the mean over all terms of the global batch, where a term is whatever `losses` gives a number for (a label, or
    an example): neither padding, nor the split into micro batches and processes, nor the number of accumulated batches changes
    it. Whatever a training step draws is a function of (seed, epoch, batch, rank). Validation generates answers greedily.
    Not supported: float16 (the loss is a sum until the optimizer step; use bf16 or float32), and checkpoints written in
    the middle of an epoch (resume from one written at an epoch's end).

    Args:
        backbone: The loaded backbone, in training mode.
        source: Folder or hub id it was loaded from: an export of a checkpoint starts there.
        optimization: Optimizer and learning rate.
        global_batch_size: Examples per optimizer step: micro batch x accumulated batches x processes. The number of
            accumulated batches is derived from it.
        lora: Adapters to train in place of all weights; None trains all of them.
        max_answer_tokens: Tokens a validation answer may have.
        seed: Seed of the draws made in training.
    """

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
        super().__init__()
        self.optimization, self.global_batch_size, self.lora = optimization, global_batch_size, lora
        self.max_answer_tokens, self.seed, self.source = max_answer_tokens, seed, source
        if lora is not None:
            add_lora(backbone, lora, seed)
        self.backbone = backbone
        self.val_accuracy = MeanMetric()
        # Buffers are constants here (rotary frequencies): sending them would need equally many batches on all processes.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]
        self.num_terms = 0  # of this process' losses, since the last optimizer step

    @abstractmethod
    def losses(self, batch: Sequence[ReasoningExample]) -> Tensor:
        """The terms of a micro batch's loss: (terms,), with gradients."""

    def generate(self, questions: Sequence[str]) -> list[str]:
        """The model's own greedy answers, for validation."""
        engine = RolloutEngine(self.backbone, max_answer_tokens=self.max_answer_tokens)
        return [texts[0] for texts in engine.rollout(questions, num_rollouts=1).texts]

    # Training ---------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if stage != "fit":
            return
        if self.lora is not None and self.trainer.precision == "bf16-mixed":
            hold_frozen_layers_in_bfloat16(self.backbone)
        micro_batch_size = self.trainer.datamodule.batch_size  # type: ignore[attr-defined]
        self.trainer.accumulate_grad_batches = accumulated_batches(
            self.global_batch_size, micro_batch_size, self.trainer.world_size
        )

    def training_step(self, batch: Sequence[ReasoningExample], batch_idx: int) -> Tensor:
        with self.seeded_draws(batch_idx):
            losses = self.losses(batch)
        self.num_terms += losses.numel()
        if losses.numel():  # the rollouts of a batch may teach nothing
            self.log("train/loss", losses.detach().mean(), prog_bar=True, batch_size=losses.numel())
        return losses.sum()  # divided by the terms of the global batch in on_before_optimizer_step

    @property
    def epoch_key(self) -> str:
        """Key of the draws of an epoch; a resumed run draws what an uninterrupted one draws."""
        return f"{self.seed}/{self.current_epoch}"

    @contextmanager
    def seeded_draws(self, batch_idx: int) -> Iterator[None]:
        """Within it, torch's own random numbers (dropout) are a function of (seed, epoch, batch, rank)."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(random.Random(f"{self.epoch_key}/{batch_idx}/{self.global_rank}").getrandbits(63))
            yield

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn the gradient of sum / (accumulated batches x processes) into that of the mean over all terms."""
        terms = torch.tensor(self.num_terms, dtype=torch.float32, device=self.device)  # exact up to 2**24
        total = max(float(self.trainer.strategy.reduce(terms, reduce_op="sum")), 1.0)  # no term: no gradient either
        scale = self.trainer.accumulate_grad_batches * self.trainer.world_size / total
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad *= scale
        self.num_terms = 0

    def configure_optimizers(self) -> OptimizerLRScheduler:
        options = self.optimization
        optimizer = fused_adamw(self.parameters(), options.lr, options.weight_decay, options.betas)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, self.lr_factor), "interval": "step"},
        }

    def lr_factor(self, step: int) -> float:
        """Factor of the learning rate at an optimizer step."""
        return self.optimization.lr_factor(step, self.trainer.estimated_stepping_batches)

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What an export needs to make the backbone again (`callbacks.export`), beside the weights."""
        backbone = self.backbone
        checkpoint["backbone"] = {
            "source": self.source,
            "metadata": backbone.metadata(),
            "config": backbone.extra_config(),
            "lora": None if self.lora is None else asdict(self.lora),
        }

    # Validation -------------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Sequence[ReasoningExample], batch_idx: int) -> None:
        texts = self.generate([example.question for example in batch])
        golds = [parse_answer(example.answer) for example in batch]
        right = [answers_equal(parse_answer(text), gold) for text, gold in zip(texts, golds, strict=True)]
        self.val_accuracy.update(torch.tensor(right, dtype=torch.float))
        self.log("val/accuracy", self.val_accuracy, prog_bar=True, batch_size=len(batch))


def accumulated_batches(global_batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Micro batches per optimizer step.

    Raises:
        UserError: The global batch is not a whole number of micro batches on every process.
    """
    per_pass = micro_batch_size * world_size
    if global_batch_size < 1 or global_batch_size % per_pass:
        raise UserError(
            f"global_batch_size {global_batch_size} is not a multiple of batch_size {micro_batch_size} x {world_size} "
            f"process(es) = {per_pass}; change one of them."
        )
    return global_batch_size // per_pass
