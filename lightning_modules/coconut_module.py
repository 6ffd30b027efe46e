"""Training of a COCONUT backbone: chain-of-thought first, then the curriculum that turns written steps into latents."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric
from transformers import AutoModelForCausalLM, AutoTokenizer

from latent_tts.answers import answers_equal, parse_answer
from latent_tts.backbones.coconut import Coconut
from latent_tts.curriculum import Curriculum, build_sequences
from latent_tts.errors import UserError
from latent_tts.latent_forward import collate, greedy_texts, token_losses
from latent_tts.problems import ReasoningExample

PUBLISHED_CURRICULUM = Curriculum()


class CoconutModule(LightningModule):
    """Trains a COCONUT from any Hugging Face causal LM, or from a fresh one made by `datamodules.scratch`.

    The loss is the mean cross-entropy over all label tokens of the global batch: neither padding, nor the split into
    micro batches and processes, nor the number of accumulated batches changes it. Validation generates answers.
    Not supported: float16 (the loss is a sum until the optimizer step; use bf16 or float32), and checkpoints written in
    the middle of an epoch (resume from one written at an epoch's end).

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
        max_answer_tokens: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.curriculum = curriculum
        self.global_batch_size, self.reset_optimizer, self.seed = global_batch_size, reset_optimizer, seed
        self.lr, self.weight_decay, self.betas = lr, weight_decay, betas
        self.warmup_steps, self.decay_fraction = warmup_steps, decay_fraction
        self.max_answer_tokens = max_answer_tokens
        self.save_hyperparameters({"backbone": backbone, "curriculum": asdict(self.curriculum)})
        self.backbone = load_for_training(backbone, self.curriculum.max_latents)
        self.val_accuracy = MeanMetric()
        self.stage = -1  # the stage the last epoch trained; -1 before the first
        self.stage_start_step = 0
        # Buffers are constants here (rotary frequencies): sending them would need equally many batches on all processes.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]
        self.label_tokens = 0  # of this process, since the last optimizer step

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
            group["lr"] = self.lr * self.lr_factor(self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["coconut_stage"] = {"stage": self.stage, "stage_start_step": self.stage_start_step}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.stage = checkpoint["coconut_stage"]["stage"]
        self.stage_start_step = checkpoint["coconut_stage"]["stage_start_step"]

    # Training ---------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if stage != "fit":
            return
        micro_batch_size = self.trainer.datamodule.batch_size  # type: ignore[attr-defined]
        self.trainer.accumulate_grad_batches = accumulated_batches(
            self.global_batch_size, micro_batch_size, self.trainer.world_size
        )

    def training_step(self, batch: Sequence[ReasoningExample], batch_idx: int) -> Tensor:
        losses = self.label_losses(batch, batch_idx)
        self.label_tokens += losses.numel()
        self.log("train/loss", losses.detach().mean(), prog_bar=True, batch_size=losses.numel())
        self.log("stage", float(self.stage), prog_bar=True, batch_size=1)
        return losses.sum()  # divided by the label tokens of the global batch in on_before_optimizer_step

    def label_losses(self, batch: Sequence[ReasoningExample], batch_idx: int) -> Tensor:
        """Cross-entropy of every label token of a micro batch: (labels,).

        Which stage an example is trained at, and the dropout of the model, are functions of (seed, epoch, batch, rank):
        a resumed run draws what an uninterrupted one draws.
        """
        backbone, epoch_key = self.backbone, f"{self.seed}/{self.current_epoch}"
        stages = [self.curriculum.draw_stage(self.stage, f"{epoch_key}/{example.question}") for example in batch]
        sequences = build_sequences(
            examples=batch,
            stages=stages,
            curriculum=self.curriculum,
            encode_prompts=backbone.encode_prompts,
            encode=self.encode,
            end_of_thought_id=backbone.end_of_thought_id,
            eos_token_id=backbone.eos_token_id,
        )
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(random.Random(f"{epoch_key}/{batch_idx}/{self.global_rank}").getrandbits(63))
            return token_losses(backbone, collate(sequences, backbone.pad_token_id, self.device))

    def encode(self, texts: list[str]) -> list[list[int]]:
        return self.backbone.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn the gradient of sum / (accumulated batches x processes) into that of the mean over all label tokens."""
        tokens = torch.tensor(self.label_tokens, dtype=torch.float32, device=self.device)  # exact up to 2**24
        total = float(self.trainer.strategy.reduce(tokens, reduce_op="sum"))
        scale = self.trainer.accumulate_grad_batches * self.trainer.world_size / total
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad *= scale
        self.label_tokens = 0

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay, betas=self.betas)
        scheduler = LambdaLR(optimizer, self.lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def lr_factor(self, step: int) -> float:
        """Warm-up (again after a reset of the optimizer), constant, linear decay to 0 at the end of training."""
        warmup = min(1.0, (step - self.stage_start_step + 1) / max(self.warmup_steps, 1))
        if self.decay_fraction == 0.0:
            return warmup
        total = self.trainer.estimated_stepping_batches
        return warmup * min(1.0, max(0.0, (total - step) / (self.decay_fraction * total)))

    # Validation -------------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Sequence[ReasoningExample], batch_idx: int) -> None:
        texts = greedy_texts(
            self.backbone,
            [example.question for example in batch],
            self.curriculum.num_latents(self.validated_stage),
            self.max_answer_tokens,
        )
        golds = [parse_answer(example.answer) for example in batch]
        right = [answers_equal(parse_answer(text), gold) for text, gold in zip(texts, golds, strict=True)]
        self.val_accuracy.update(torch.tensor(right, dtype=torch.float))
        self.log("val/accuracy", self.val_accuracy, prog_bar=True, batch_size=len(batch))

    def on_validation_epoch_end(self) -> None:
        """`val/final_accuracy` is 0 before the final stage: the best checkpoint is one that thinks in latents alone."""
        final = self.validated_stage == self.curriculum.final_stage
        accuracy = self.val_accuracy.compute() if final else torch.zeros(())
        self.log("val/final_accuracy", accuracy, sync_dist=True)

    @property
    def validated_stage(self) -> int:
        """The stage being trained; the final one where nothing was trained yet."""
        return self.stage if self.stage >= 0 else self.curriculum.final_stage


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


def load_for_training(name_or_folder: str, num_latents: int) -> Coconut:
    """A causal LM as a COCONUT, in float32, with the special tokens added where it has none.

    Raises:
        UserError: There is no such model, or its weights are incomplete.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name_or_folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(name_or_folder)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"The model to start from, {name_or_folder!r}, cannot be loaded: {reason}") from error
    model, info = loaded
    lacking = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if lacking:
        raise UserError(f"The weights of {name_or_folder!r} are incomplete: {', '.join(lacking)}.")
    return cast(Coconut, Coconut.from_causal_lm(model.train(), tokenizer, num_latents=num_latents))
