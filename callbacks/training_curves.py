"""What the curves of a training show beside what its module logs: its speed, and some of its validation answers as text."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger


class TrainingSpeed(Callback):
    """`train/examples_per_second`, of all processes, over the batches since the last point; validations do not count.

    Nothing is asked of the device: the host runs ahead of it by some batches at most.

    Args:
        clock: Gives seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._restart()

    def _restart(self) -> None:
        self.began, self.examples = self.clock(), 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.examples += len(getattr(batch, "questions", batch)) * trainer.world_size
        connector, seconds = trainer._logger_connector, self.clock() - self.began
        if not connector.should_update_logs or seconds <= 0:
            return
        for logger in trainer.loggers:
            step = trainer.fit_loop.epoch_loop._batches_that_stepped  # as Lightning counts in its own curves
            logger.log_metrics({"train/examples_per_second": self.examples / seconds}, step=step)
        self._restart()


class ValidationAnswers(Callback):
    """`val/answers`, in TensorBoard: after every validation a table of its first questions, their gold answers and the model's.

    Args:
        count: Problems shown.
    """

    def __init__(self, count: int = 8) -> None:
        self.count = count
        self.rows: list[tuple[str, str, str]] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        if isinstance(outputs, list):
            pairs = zip(batch, outputs, strict=True)
            found = [(example.question, example.answer, text) for example, text in pairs]
            self.rows += found[: self.count - len(self.rows)]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.rows or trainer.sanity_checking or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("val/answers", as_table(self.rows), trainer.global_step)


def as_table(rows: list[tuple[str, str, str]]) -> str:
    """Markdown; what a model writes cannot break a row.

    >>> print(as_table([("1 | 2?", "3", " 4\\n5")]))
    | question | gold | answer |
    |---|---|---|
    | 1 \\\\| 2? | 3 | 4 5 |
    """
    lines = ["| question | gold | answer |", "|---|---|---|"]
    for row in rows:
        lines.append("| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in row) + " |")
    return "\n".join(lines)
