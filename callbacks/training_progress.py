"""The bar of a training in a terminal: the steps of all of it, and below it where it is and the running figures."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from callbacks.progress import BarAndNews, bar_and_news
from callbacks.progress_lines import TrainingLines, in_terminal, rate, running_figures, share_of_training


def training_progress() -> ProgressBar:
    """A bar in a terminal, lines anywhere else."""
    return TrainingProgress() if in_terminal() else TrainingLines()


class TrainingProgress(TrainingLines):
    """The share of the whole training that is done, its rate and the time that is left, on rank 0.

    Args:
        every: Seconds between two looks at the figures, for which the device is waited for.
    """

    def __init__(self, every: float = 0.5) -> None:
        super().__init__()
        self.every, self._shown_at = every, -float("inf")
        self._bar: BarAndNews | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.is_enabled:
            self._bar = bar_and_news("{task.percentage:>3.0f} %")
            self._bar.start()
            self._bar.add_task("training", total=None, news="", rate="")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        of = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        where = f"epoch {trainer.current_epoch + 1}{of}, batch {batch_idx + 1}/{trainer.num_training_batches}"
        self._show(trainer, pl_module, where, share_of_training(trainer, batch_idx + 1))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if not trainer.sanity_checking:
            total = sum(trainer.num_val_batches)
            self._show(trainer, pl_module, f"validation, batch {batch_idx + 1}/{total}", None)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._shown_at = -float("inf")
        self._show(trainer, pl_module, "training ends", None)
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _show(self, trainer: Trainer, pl_module: LightningModule, where: str, share: float | None) -> None:
        now = time.monotonic()
        if self._bar is None or now - self._shown_at < self.every:
            return
        self._shown_at, task = now, self._bar.tasks[0]
        news = " · ".join(
            [where, f"step {trainer.global_step}", *running_figures(self.get_metrics(trainer, pl_module))]
        )
        speed = rate(trainer.global_step - self.steps_before, self.pace.elapsed, "step")
        if share is not None:
            self._bar.update(task.id, total=1.0, completed=share)
        self._bar.update(task.id, news=news, rate=speed)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
