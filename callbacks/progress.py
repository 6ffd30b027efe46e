"""A progress bar that counts problems and shows how the answers fare while they come."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from callbacks.protocols import problem_source, progress_of


class ProblemProgress(ProgressBar):
    """Counts the problems in the module's metrics: those on disk from an earlier run are done from the start.

    With several ranks the bar is rank 0's and shows its share. The total is unknown for sets that are streamed from the hub.
    """

    def __init__(self) -> None:
        super().__init__()
        self._progress: Progress | None = None
        self._enabled = True

    def disable(self) -> None:
        """Lightning calls it on every rank but the first."""
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._enabled:
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[news]}", table_column=Column(no_wrap=True)),
            expand=True,
        )
        self._progress.start()
        total = problem_source(trainer).num_problems
        share = None if total is None else -(-total // trainer.world_size)
        self._progress.add_task("problems", total=share, news="")
        self._show(pl_module)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._show(pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _show(self, pl_module: LightningModule) -> None:
        if self._progress is not None:
            module = progress_of(pl_module)
            self._progress.update(
                self._progress.task_ids[0], completed=module.metrics.num_problems, news=module.progress_news()
            )

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
