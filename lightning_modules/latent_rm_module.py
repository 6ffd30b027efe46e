"""Training of a latent reward model on annotated rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from datamodules.annotated_rollout_data import AnnotatedBatch, AnnotatedRolloutDataModule
from latent_tts.aggregation.base import StepReduction
from latent_tts.attention.windows import longest_sequence
from latent_tts.backbones import load_backbone
from latent_tts.errors import UserError
from latent_tts.metrics import PairwiseRankingAccuracy, RecallAt1, ScoreCalibration, StepScoreCorrelation
from latent_tts.reward import LatentRewardModel
from latent_tts.reward.heads import HeadName
from latent_tts.reward.inputs import check_scores
from latent_tts.reward.loading import load_to_train_further
from latent_tts.reward.losses import LabelsName, LossName, LossSum, RewardLoss, TargetsName
from latent_tts.training.optimization import Optimization
from lightning_modules.hyperparameters import options_of
from lightning_modules.trainer_fit import data_of
from lightning_modules.training_module import TrainingModule

DEFAULT_OPTIMIZATION = Optimization(warmup_share=0.1, schedule="cosine")


class LatentRMModule(TrainingModule):
    """Trains a LatentRewardModel that starts from a backbone, on rollouts which that backbone made.

    A term of the loss is a valid step; see TrainingModule for what the loss is independent of, and for what is not supported.
    The best checkpoint is the one with the highest `val/recall_at_1`.

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
        optimization: Optimizer and learning rate.
        global_batch_size: Problems per optimizer step: micro batch x accumulated batches x processes. The number of accumulated
            batches is derived from it; null takes one micro batch of every process.
        dropout: Dropout of the transformer in training; the published training has none.
        reduction: How step scores become one score of a rollout in recall@1.
        seed: Seed of the new head's weights and of the draws made in training (dropout).
    """

    monitor = "val/recall_at_1"
    logged_metrics: ClassVar[tuple[str, ...]] = (
        *TrainingModule.logged_metrics,
        "val/loss",
        "val/recall_at_1",
        "val/chance",
        "val/coverage",
        "val/voting",
        "val/ranking_accuracy",
        "val/calibration_error",
        "val/correlation",
        "val/correlation_within",
    )

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
        optimization: Optimization = DEFAULT_OPTIMIZATION,
        global_batch_size: int | None = None,
        dropout: float = 0.0,
        reduction: StepReduction = "sum",
        seed: int = 0,
    ) -> None:
        super().__init__(optimization, global_batch_size, seed)
        rollouts_of = load_backbone(backbone, kind, num_latents, backbone_dtype)
        self.reward_model: LatentRewardModel = (
            LatentRewardModel.from_backbone(rollouts_of, head, frozen, dropout, seed)
            if reward_model is None
            else load_to_train_further(reward_model, rollouts_of, head, frozen, dropout)
        )
        read = {"backbone": rollouts_of.commit, "reward_model": self.reward_model.commit}
        self._commits = {option: commit for option, commit in read.items() if commit is not None}
        self.reward_model.float().train()
        self.reward_loss = RewardLoss(loss, targets, labels)
        steps = self.reward_model.num_latents
        self.val_loss = MeanMetric()
        self.recall_at_1 = RecallAt1(reduction)
        self.ranking_accuracy = PairwiseRankingAccuracy(steps)
        self.calibration = ScoreCalibration()
        self.correlation = StepScoreCorrelation(steps)
        self.curves: dict[str, dict[str, Tensor]] = {}  # what the last validation computed, for plots
        # Buffers are constants here: no process has to send them, which would need equally many batches on all in validation.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]
        self.save_hyperparameters(options_of(self, locals()))

    def setup(self, stage: str) -> None:
        """Refuses annotations that another backbone made, or that lack what the loss needs."""
        super().setup(stage)
        data, model = data_of(self.trainer), self.reward_model
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

    @property
    def commits(self) -> dict[str, str]:
        return self._commits

    @property
    def trained(self) -> LatentRewardModel:
        return self.reward_model

    @property
    def can_be_sharded(self) -> bool:
        return not self.reward_model.frozen

    @property
    def max_positions(self) -> int | None:
        """Positions of a prompt and the latents of a rollout."""
        return longest_sequence(self.reward_model.transformer.config)

    def prompt_lengths(self, questions: Sequence[str]) -> list[int]:
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

    @staticmethod
    def next_command(model: str, backbone: str) -> list[str]:
        return ["python", "evaluate.py", "--model.backbone", backbone, "--model.reward_model", model]

    def summed_loss(self, batch: AnnotatedBatch) -> tuple[Tensor, Tensor]:
        return self.loss(self.score(batch), batch)

    def export(self, folder: Path, dtype: str = "float32", adapters_only: bool = False) -> None:
        """As `load_reward_model` reads it."""
        if adapters_only:
            raise UserError("A reward model has no adapters to store alone.")
        self.reward_model.save_pretrained(folder, dtype=getattr(torch, dtype))

    # Validation -------------------------------------------------------------------------------------------------------

    def validation_step(self, batch: AnnotatedBatch, batch_idx: int) -> Tensor:
        """Updates the metrics; returns the step scores, (B, N, T)."""
        scores = self.score(batch).detach()
        check_scores(scores, scores.dtype)
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
        known = {name: value.float() for name, value in scalars.items() if not value.isnan()}  # on every rank the same
        self.log_dict(known, sync_dist=True, batch_size=1)
        for metric in (self.val_loss, self.recall_at_1, self.ranking_accuracy, self.calibration, self.correlation):
            metric.reset()
