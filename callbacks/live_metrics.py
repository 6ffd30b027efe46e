"""How the answers fare while an evaluation runs, as curves over the problems done."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.protocols import evaluation_module
from callbacks.shared_counts import SharedCounts
from latent_tts.evaluation.report.event_files import Margins, add_layout, tag_name
from latent_tts.evaluation.report.tensorboard import LIVE, live_charts
from latent_tts.evaluation.summary import RunningMetrics
from lightning_modules.parallel_tts_module import ParallelTTSModule


class LiveMetrics(Callback):
    """Logs to the trainer's loggers what is known so far, with the number of problems done as the step:

        live/STRATEGY, live_interval/STRATEGY_low, live_interval/STRATEGY_high    every strategy at its full budget, and coverage
        live/invalid_answer_rate
        live_speed/rollouts_per_second, live_speed/rollouts_per_second_with_scoring

    TensorBoard gets a chart of all strategies, and one of each with its interval. With several ranks the figures are those of all
    of them, some seconds old for the others. Nothing is logged before the first problem is done.

    Args:
        every: Seconds between two points; the last problem always has one.
    """

    def __init__(self, every: float = 5.0) -> None:
        self.every = every
        self._logged_at, self._logged = -float("inf"), 0
        self._shared = SharedCounts()
        self._margins = Margins(LIVE)
        self._charted: list[TensorBoardLogger] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts from what is on disk."""
        module = evaluation_module(pl_module)
        self._shared.leave(module.metrics, {})
        self._logged = module.metrics.num_problems

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Logs a point where one is due."""
        if trainer.loggers and time.monotonic() - self._logged_at >= self.every:
            self._log(trainer, evaluation_module(pl_module))

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the last sums of this rank, before any waits for the others."""
        module = evaluation_module(pl_module)
        self._shared.leave(module.metrics, module.speeds)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the last point; behind a callback that has waited for all ranks it is that of all."""
        if trainer.loggers and trainer.is_global_zero:
            self._log(trainer, evaluation_module(pl_module))

    def _log(self, trainer: Trainer, module: ParallelTTSModule) -> None:
        self._logged_at = time.monotonic()
        if not trainer.is_global_zero:
            self._shared.leave(module.metrics, module.speeds)
            return
        metrics, speeds = self._shared.gather(module.metrics, module.speeds)
        if metrics.num_problems == self._logged:
            return
        self._logged = metrics.num_problems
        scalars = self._scalars(metrics) | {f"live_speed/{name}": speed for name, speed in speeds.items()}
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=self._logged)
            if isinstance(logger, TensorBoardLogger):
                self._add_chart(logger)
            logger.save()

    def _scalars(self, metrics: RunningMetrics) -> dict[str, float]:
        found = {"live/invalid_answer_rate": float(metrics.invalid.invalid / metrics.invalid.count)}
        for one, interval in metrics.so_far().items():
            found |= self._margins.scalars(tag_name(one), interval)
        return found

    def _add_chart(self, logger: TensorBoardLogger) -> None:
        """Where the logger has none yet; two of the same title in a run are one to TensorBoard."""
        if logger not in self._charted:
            self._charted.append(logger)
            add_layout(logger.experiment, live_charts(self._margins))
