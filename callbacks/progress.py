"""A progress bar that counts problems and shows how the answers fare while they come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from callbacks.progress_lines import ProblemLines, in_terminal, rate
from callbacks.protocols import problem_source, progress_of


def problem_progress() -> ProgressBar:
    """A bar in a terminal, lines anywhere else."""
    return ProblemProgress() if in_terminal() else ProblemLines()


class BarAndNews(Progress):
    """The bar, and below it the running figures: beside it, they would be cut in a narrow terminal."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            yield Text(task.fields["news"])


def bar_and_news(count: str) -> BarAndNews:
    """A bar with how much is done, in this form, the rate, and the time that is gone and left."""
    return BarAndNews(
        BarColumn(bar_width=None),
        TextColumn(count),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        expand=True,
    )


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

    @property
    def is_enabled(self) -> bool:
        """Whether this process shows the bar."""
        return self._enabled

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._enabled:
            return
        self._progress = bar_and_news("{task.completed:.0f}/{task.fields[of]}")
        self._before = progress_of(pl_module).metrics.num_problems
        self._progress.start()
        total = problem_source(trainer).num_problems
        share = None if total is None else -(-total // trainer.world_size)
        self._progress.add_task("problems", total=share, news="", rate="", of="?" if share is None else share)
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
            done, task = module.metrics.num_problems, self._progress.tasks[0]
            speed = rate(done - self._before, task.elapsed or 0.0, "problem")
            self._progress.update(task.id, completed=done, news=module.progress_news(), rate=speed)

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
