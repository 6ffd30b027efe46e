"""What the curves of a training show beside what its module logs: its speeds, and some of its validation answers as text."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

COLUMNS = ("question", "gold", "answer")


class TrainingSpeed(Callback):
    """`train/examples_per_second` and `train/positions_per_second`, over the batches since the last point, without validations.

    Positions are columns of what the trained model is fed, tokens and latents, padding among them; a pass that is made twice
    counts twice. Both are of all processes, of which each is taken to do as much as this one. Nothing is asked of the device:
    the host runs ahead of it by some batches at most.

    Args:
        clock: Gives seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._hooks: list[RemovableHandle] = []
        self._restart()

    def _restart(self) -> None:
        self.began, self.examples, self.positions = self.clock(), 0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        models = [part.base_model for part in pl_module.modules() if isinstance(part, PreTrainedModel)]
        decoders = {id(model): model for model in models}  # a causal LM and its base model are found as one
        self._hooks = [one.register_forward_pre_hook(self._count, with_kwargs=True) for one in decoders.values()]
        self._restart()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._leave()

    def _leave(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _count(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.positions += kwargs["inputs_embeds"].shape[:2].numel()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.examples += len(getattr(batch, "questions", batch))
        connector, seconds = trainer._logger_connector, self.clock() - self.began
        if not connector.should_update_logs or seconds <= 0:
            return
        counts = {"examples": self.examples, "positions": self.positions}
        speeds = {f"train/{name}_per_second": count * trainer.world_size / seconds for name, count in counts.items()}
        for logger in trainer.loggers:
            step = trainer.fit_loop.epoch_loop._batches_that_stepped  # as Lightning counts in its own curves
            logger.log_metrics(speeds, step=step)
        self._restart()


class ValidationAnswers(Callback):
    """`val/answers`: after every validation a table of its first questions, their gold answers and the model's.

    TensorBoard shows it as text, Weights & Biases as a table, MLflow as an artifact a validation; other loggers get none.

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
            log_answers(logger, self.rows, trainer.global_step)


def log_answers(logger: Logger, rows: list[tuple[str, str, str]], step: int) -> None:
    """Question, gold answer and model's answer, to a logger that shows text."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text("val/answers", as_table(rows), step)
    elif isinstance(logger, WandbLogger):
        logger.log_text("val/answers", columns=list(COLUMNS), data=[list(row) for row in rows], step=step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_text(logger.run_id, as_table(rows), f"val_answers/step-{step:06d}.md")


def as_table(rows: list[tuple[str, str, str]]) -> str:
    """Markdown; what a model writes cannot break a row.

    >>> print(as_table([("1 | 2?", "3", " 4\\n5")]))
    | question | gold | answer |
    |---|---|---|
    | 1 \\\\| 2? | 3 | 4 5 |
    """
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|---|"]
    for row in rows:
        lines.append("| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in row) + " |")
    return "\n".join(lines)
