"""Training of a latent reward model on annotated rollouts."""

from __future__ import annotations

import math
from typing import Literal

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from datamodules.annotated_rollout_data import AnnotatedBatch, AnnotatedRolloutDataModule
from latent_tts.aggregation.base import StepReduction
from latent_tts.backbones import load_backbone
from latent_tts.errors import UserError
from latent_tts.metrics import PairwiseRankingAccuracy, RecallAt1, ScoreCalibration, StepScoreCorrelation
from latent_tts.reward import LatentRewardModel
from latent_tts.reward.heads import HeadName
from latent_tts.reward.loading import load_to_train_further
from latent_tts.reward.losses import LabelsName, LossName, LossSum, RewardLoss, TargetsName
from latent_tts.training.optimization import fused_adamw


class LatentRMModule(LightningModule):
    """Trains a LatentRewardModel that starts from a backbone, on rollouts which that backbone made.

    The loss is the mean over the valid steps of the global batch: neither padding, nor the split into micro batches and
    processes, nor the number of accumulated batches changes it. Float16 is not supported (the loss is a sum until the
    optimizer step); use bf16 or float32. The best checkpoint is the one with the highest `val/recall_at_1`.

    Args:
        backbone: Folder or hub id of the backbone that made the rollouts; the reward model starts from its weights.
        reward_model: Folder or hub id of a reward model of that backbone to train further, in place of a new one.
        kind: coconut, codi or colar, where the backbone's files don't say.
        num_latents: Latents of a rollout, where the annotation has overridden the backbone's own number.
        backbone_dtype: Type the backbone was held in when it annotated; training itself starts in float32.
        head: How a score is read from the hidden states: linear (published), mlp, or attention over the steps so far.
        frozen: Whether only the head is trained, on the hidden states of the backbone as it is.
        loss: contrastive compares the rollouts of a problem at each step, bce looks at every step by itself.
        targets: Weights of the contrastive loss: raw labels (published), normalised over the rollouts, or one_hot at the best.
        labels: continuations are the Monte-Carlo values of the prefixes, final is the rollout's own correctness.
        lr: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        betas: Momentum terms of AdamW.
        warmup_share: Share of all optimizer steps over which the learning rate rises from 0; then it falls as a cosine to 0.
        dropout: Dropout of the transformer in training; the published training has none.
        reduction: How step scores become one score of a rollout in recall@1.
        seed: Seed of the new head's weights.
    """

    def __init__(
        self,
        backbone: str,
        reward_model: str | None = None,
        kind: str | None = None,
        num_latents: int | None = None,
        backbone_dtype: Literal["float32", "bfloat16"] = "float32",
        head: HeadName = "linear",
        frozen: bool = False,
        loss: LossName = "contrastive",
        targets: TargetsName = "raw",
        labels: LabelsName = "continuations",
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup_share: float = 0.1,
        dropout: float = 0.0,
        reduction: StepReduction = "sum",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if not 0.0 <= warmup_share < 1.0:
            raise UserError(f"warmup_share is a share of the training and must be in [0, 1), got {warmup_share}")
        rollouts_of = load_backbone(backbone, kind, num_latents, backbone_dtype)
        self.reward_model: LatentRewardModel = (
            LatentRewardModel.from_backbone(rollouts_of, head, frozen, dropout, seed)
            if reward_model is None
            else load_to_train_further(reward_model, rollouts_of, head, frozen, dropout)
        )
        self.reward_model.float().train()
        self.reward_loss = RewardLoss(loss, targets, labels)
        self.lr, self.weight_decay, self.betas, self.warmup_share = lr, weight_decay, betas, warmup_share
        steps = self.reward_model.num_latents
        self.val_loss = MeanMetric()
        self.recall_at_1 = RecallAt1(reduction)
        self.ranking_accuracy = PairwiseRankingAccuracy(steps)
        self.calibration = ScoreCalibration()
        self.correlation = StepScoreCorrelation(steps)
        self.curves: dict[str, dict[str, Tensor]] = {}  # what the last validation computed, for plots
        self._valid_steps = torch.zeros((), dtype=torch.long)  # terms of the loss since the last optimizer step
        # Buffers are constants here: no process has to send them, which would need equally many batches on all in validation.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    def setup(self, stage: str) -> None:
        """Refuses annotations that another backbone made, or that lack what the loss needs."""
        data, model = self.trainer.datamodule, self.reward_model  # type: ignore[attr-defined]
        if not isinstance(data, AnnotatedRolloutDataModule):
            raise UserError(
                f"a reward model is trained with AnnotatedRolloutDataModule as --data, not {type(data).__name__}"
            )
        data.require(
            hidden_size=model.hidden_size,
            num_latents=model.num_latents,
            backbone_kind=model.kind,
            backbone_fingerprint=model.backbone_fingerprint,
        )
        settings = data.stores[0].settings
        if self.reward_loss.labels == "continuations" and settings.num_continuations == 0:
            raise UserError(
                f"the annotations in {data.folder} have no Monte-Carlo values (num_continuations is 0); annotate with "
                "num_continuations of 1 or more, or train with labels final"
            )
        if self.reward_loss.contrasts and settings.num_rollouts < 2:
            raise UserError(
                f"the annotations in {data.folder} have num_rollouts 1 and a contrastive loss compares rollouts; annotate with "
                "num_rollouts of 2 or more, or train with loss bce"
            )

    def prompt_lengths(self, questions: list[str]) -> list[int]:
        """Tokens of the questions' prompts, by which batches are made of problems of similar length."""
        return self.reward_model.prompt_lengths(questions)

    def score(self, batch: AnnotatedBatch) -> Tensor:
        """Step scores, (B, N, T), with gradients."""
        prompt_ids, prompt_mask = self.reward_model.encode_prompts(batch.questions)
        scores: Tensor = self.reward_model(prompt_ids, prompt_mask, batch.latents, batch.mask)
        return scores

    def loss(self, scores: Tensor, batch: AnnotatedBatch) -> LossSum:
        """The chosen loss of a batch, summed over its valid steps."""
        return self.reward_loss(scores, batch.values, batch.correct, batch.mask)

    # Training ---------------------------------------------------------------------------------------------------------

    def training_step(self, batch: AnnotatedBatch, batch_idx: int) -> Tensor:
        loss = self.loss(self.score(batch), batch)
        self._valid_steps = self._valid_steps.to(self.device) + loss.num_terms
        self.log("train/loss", loss.mean.detach(), prog_bar=True, batch_size=len(batch.questions))
        return loss.total  # divided by the valid steps of the global batch in on_before_optimizer_step

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn the gradient of sum / (accumulated batches x processes) into that of the mean over all valid steps."""
        total = self.trainer.strategy.reduce(self._valid_steps.double(), reduce_op="sum")
        scale = self.trainer.accumulate_grad_batches * self.trainer.world_size / torch.as_tensor(total).clamp(min=1)
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad *= scale.to(parameter.grad)
        self._valid_steps = torch.zeros_like(self._valid_steps)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = fused_adamw(self.parameters(), self.lr, self.weight_decay, self.betas)
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total):
            raise UserError(
                "the learning rate falls over the whole training: give its length, --trainer.max_epochs or max_steps"
            )
        scheduler = LambdaLR(optimizer, lambda step: warmup_cosine(step, int(total), self.warmup_share))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # Validation -------------------------------------------------------------------------------------------------------

    def validation_step(self, batch: AnnotatedBatch, batch_idx: int) -> Tensor:
        """Updates the metrics; returns the step scores, (B, N, T)."""
        scores = self.score(batch).detach()
        loss = self.loss(scores, batch)
        self.val_loss.update(loss.mean, weight=loss.num_terms)
        self.recall_at_1.update(scores, batch.correct, batch.mask, batch.answers)
        self.ranking_accuracy.update(scores, batch.correct, batch.mask)
        valued = batch.valued
        self.calibration.update(scores, batch.values, valued)
        self.correlation.update(scores, batch.values, valued)
        return scores

    def on_validation_epoch_end(self) -> None:
        self.curves = {
            "recall": self.recall_at_1.compute(),
            "ranking": self.ranking_accuracy.compute(),
            "calibration": self.calibration.compute(),
            "correlation": self.correlation.compute(),
        }
        scalars = {
            "val/loss": self.val_loss.compute(),
            **{f"val/{name}": share for name, share in self.curves["recall"].items()},
            "val/ranking_accuracy": self.curves["ranking"]["mean"],
            "val/calibration_error": self.curves["calibration"]["error"],
            "val/correlation": self.curves["correlation"]["per_step"].nanmean(),
            "val/correlation_within": self.curves["correlation"]["within"].nanmean(),
        }
        self.log_dict({name: value.float() for name, value in scalars.items()}, sync_dist=True, batch_size=1)
        for metric in (self.val_loss, self.recall_at_1, self.ranking_accuracy, self.calibration, self.correlation):
            metric.reset()


def warmup_cosine(step: int, total_steps: int, warmup_share: float) -> float:
    """Factor of the learning rate: linear from 0 to 1 over the warm-up, then half a cosine down to 0."""
    warmup = warmup_share * total_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - warmup) / max(1.0, total_steps - warmup))))
