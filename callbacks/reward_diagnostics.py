"""What a reward model has learned, in TensorBoard: histograms of scores, and curves over the latent steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torchmetrics import CatMetric

from datamodules.annotated_rollout_data import AnnotatedBatch
from lightning_modules.latent_rm_module import LatentRMModule

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class RewardDiagnostics(Callback):
    """After every validation: histograms of the step scores of right and of wrong rollouts, one a step, and figures: both in one
    card, ranking accuracy and correlation per step, and, where there are Monte-Carlo values, the reliability of sigmoid(score).

    Scores are centred on the mean of their problem and step first, as only differences between the rollouts of a problem are
    trained and used. Other loggers than TensorBoard get nothing.

    Args:
        max_scores: Step scores kept for the histograms on each process.
    """

    def __init__(self, max_scores: int = 1_000_000) -> None:
        self.max_scores = max_scores
        self.rows = CatMetric()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows = CatMetric()
        self.kept = 0

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: AnnotatedBatch, *_: Any, **__: Any
    ) -> None:
        if self.kept < self.max_scores:
            rows = score_rows(outputs.cpu(), batch.correct.cpu(), batch.mask.cpu())
            self.rows.update(rows)
            self.kept += len(rows)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LatentRMModule)
        rows = self.rows.compute()
        writers = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not trainer.is_global_zero or not writers or not len(rows):
            return
        step, right, scores = rows[:, 0].long(), rows[:, 1].bool(), rows[:, 2]
        for writer in writers:
            for t in range(int(step.max()) + 1):
                for name, chosen in (("right", right), ("wrong", ~right)):
                    if len(found := scores[(step == t) & chosen]):
                        writer.add_histogram(f"scores/step_{t + 1}/{name}", found, trainer.global_step)
            writer.add_figure("val/scores", scores_figure(step, right, scores), trainer.global_step)
            writer.add_figure("val/steps", steps_figure(pl_module.curves), trainer.global_step)
            calibration = pl_module.curves["calibration"]
            if bool(calibration["count"].sum() > 0):
                writer.add_figure("val/calibration", calibration_figure(calibration), trainer.global_step)


def score_rows(scores: Tensor, correct: Tensor, mask: Tensor) -> Tensor:
    """One row (step, right, centred score) for each step score that exists: (K, 3) from (B, N, T), (B, N), (B, N, T)."""
    scores = scores.float().masked_fill(~mask, 0.0)
    centred = scores - scores.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    steps = torch.arange(scores.shape[2]).expand_as(scores)
    return torch.stack([steps.float(), correct.float().unsqueeze(-1).expand_as(scores), centred], dim=-1)[mask]


def scores_figure(step: Tensor, right: Tensor, scores: Tensor) -> Figure:
    """How the scores of right and of wrong rollouts are spread at the first and at the last step, each as a share of its own.

    Args:
        step: (K,) long, from 0.
        right: (K,) bool.
        scores: (K,) centred scores.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    first_and_last = sorted({0, int(step.max())})
    edges = torch.linspace(float(scores.min()), float(scores.max()) + 1e-6, 41)
    for axes, t in zip(figure.subplots(1, len(first_and_last), squeeze=False)[0], first_and_last, strict=True):
        for name, chosen, style in (("right", right, "-"), ("wrong", ~right, "--")):
            found = scores[(step == t) & chosen]
            if len(found):
                shares = torch.histogram(found, edges).hist / len(found)
                axes.stairs(
                    shares.numpy(), edges.numpy(), label=f"{name} ({len(found)})", linestyle=style, linewidth=1.5
                )
        axes.set(title=f"latent step {t + 1}", xlabel="score - mean of its problem", ylim=(0, None))
        axes.legend(fontsize="small")
    figure.axes[0].set_ylabel("share of the rollouts")
    return figure


def steps_figure(curves: dict[str, dict[str, Tensor]]) -> Figure:
    """Ranking accuracy and correlation against the latent step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4))
    axes = figure.add_subplot()
    ranking, correlation = curves["ranking"]["per_step"].cpu(), curves["correlation"]
    steps = range(1, len(ranking) + 1)
    axes.plot(steps, ranking, marker="o", label="pairwise ranking accuracy")
    axes.plot(steps, correlation["per_step"].cpu(), marker="s", label="correlation with the value")
    axes.plot(steps, correlation["within"].cpu(), marker="^", label="correlation within a problem")
    axes.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xlabel("latent step")
    axes.legend()
    return figure


def calibration_figure(calibration: dict[str, Tensor]) -> Figure:
    """Mean value against mean sigmoid(score): a dot a bin, the larger the more scores are in it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    predicted, observed, count = (calibration[name].cpu() for name in ("predicted", "observed", "count"))
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":", label="calibrated")
    axes.plot(predicted, observed, linewidth=0.8, color="C0")
    axes.scatter(predicted, observed, s=10 + 90 * (count / count.max()), color="C0", label="reward model")
    axes.set(xlabel="sigmoid(score)", ylabel="Monte-Carlo value", xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
    axes.set_title(f"calibration error {float(calibration['error']):.3f} of {int(count.sum())} step scores")
    axes.legend(fontsize="small")
    return figure
