"""How the answers fare while an evaluation runs, as curves over the problems done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from callbacks.protocols import evaluation_module
from lightning_modules.parallel_tts_module import ParallelTTSModule


class LiveMetrics(Callback):
    """Logs, with the number of problems done as the step, what is known so far:

        live/accuracy/STRATEGY, live/interval_low/STRATEGY, live/interval_high/STRATEGY    every strategy at its full budget, and
                                                                                           coverage
        live/invalid_answer_rate, live/rollouts_per_second

    It logs to the trainer's loggers, or where it has none to TensorBoard in OUTPUT/tensorboard/live. With several ranks the
    curves are rank 0's share. Nothing is written before the first problem is done.

    Args:
        output: The run's folder.
        every: Seconds between two points; the last problem always has one.
    """

    def __init__(self, output: str | Path, every: float = 5.0) -> None:
        self.output, self.every = Path(output), every
        self._logged_at, self._logged = -float("inf"), 0
        self._loggers: Sequence[Logger] = ()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts from what is on disk."""
        self._logged = evaluation_module(pl_module).metrics.num_problems
        self._loggers = trainer.loggers or [TensorBoardLogger(self.output, name="tensorboard", version="live")]

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
        if trainer.is_global_zero and time.monotonic() - self._logged_at >= self.every:
            self._log(evaluation_module(pl_module))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the last point."""
        if trainer.is_global_zero:
            self._log(evaluation_module(pl_module))

    def _log(self, module: ParallelTTSModule) -> None:
        num_problems = module.metrics.num_problems
        if num_problems == self._logged:
            return
        self._logged_at, self._logged = time.monotonic(), num_problems
        for logger in self._loggers:
            logger.log_metrics(_scalars(module), step=num_problems)
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()  # its save() writes hyperparameters, of which there are none
            else:
                logger.save()


def _scalars(module: ParallelTTSModule) -> dict[str, float]:
    metrics = module.metrics
    found = {"live/invalid_answer_rate": float(metrics.invalid.invalid / metrics.invalid.count)}
    if module.rollouts_per_second is not None:
        found["live/rollouts_per_second"] = module.rollouts_per_second
    for one, interval in metrics.so_far().items():
        name = one.key.replace("@", "_")
        found |= {
            f"live/accuracy/{name}": interval.mean,
            f"live/interval_low/{name}": interval.low,
            f"live/interval_high/{name}": interval.high,
        }
    return found
