"""Progress where there is no terminal: plain lines at a bounded rate, for a file or a batch system's log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from callbacks.protocols import problem_source, progress_of


def in_terminal() -> bool:
    """Whether what is printed is looked at while it comes; a bar is shown there, lines anywhere else."""
    return sys.stdout.isatty()


class Pace:
    """Says when a line is due: after so many seconds, or after such a share of the whole, since the one before.

    A run of T seconds so prints at most T / `seconds` + 1 / `share` lines, beside its first and its last one.

    Args:
        clock: Gives seconds that only grow.
        seconds: Between two lines.
        share: Of the whole, between two lines.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, seconds: float = 30.0, share: float = 0.05) -> None:
        self.clock, self.seconds, self.share = clock, seconds, share
        self.start(None)

    def start(self, share: float | None) -> None:
        """The run begins, with a share of it done by an earlier one; None where it is unknown."""
        self.began, self.share_before = self.clock(), share or 0.0
        self.last_time, self.last_share = self.began, self.share_before

    def is_due(self, share: float | None) -> bool:
        """Whether to print a line now, at this share of the whole; the next one then counts from here."""
        now = self.clock()
        # Shares are sums of many small steps: without some room every line would be one step late.
        grown = share is not None and share - self.last_share >= self.share - 1e-9
        if now - self.last_time < self.seconds and not grown:
            return False
        self.last_time, self.last_share = now, self.last_share if share is None else share
        return True

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.began

    def left(self, share: float | None) -> float | None:
        """Seconds to the end at the pace so far; None where nothing is known of it."""
        if share is None or share <= self.share_before:
            return None
        return self.elapsed * max(0.0, 1 - share) / (share - self.share_before)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> duration(59.6), duration(3725), duration(90_000)
    ('0:01:00', '1:02:05', '25:00:00')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def rate(count: float, seconds: float, unit: str) -> str:
    """So many a second, or seconds for each one where it is slower.

    >>> rate(30, 10, "problem"), rate(5, 10, "problem"), rate(0, 10, "problem")
    ('3.00 problems/s', '2.00 s/problem', '')
    """
    if count <= 0 or seconds <= 0:
        return ""
    return f"{count / seconds:.2f} {unit}s/s" if count >= seconds else f"{seconds / count:.2f} s/{unit}"


class ProgressLines(ProgressBar):
    """Prints lines in place of a bar, on rank 0."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.pace, self._enabled = Pace(clock), True

    def disable(self) -> None:
        """Lightning calls it on every rank but the first."""
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    @property
    def is_enabled(self) -> bool:
        """Whether this process prints; what a module prints goes the same way."""
        return self._enabled

    def write(self, count: str, speed: str, share: float | None, figures: str) -> None:
        """One line: count, rate, time gone and left, running figures."""
        if not self._enabled:
            return
        left = self.pace.left(share)
        times = f"{duration(self.pace.elapsed)} gone" + ("" if left is None else f", {duration(left)} left")
        print(" · ".join(part for part in (count, speed, times, figures) if part), flush=True)


class ProblemLines(ProgressLines):
    """An evaluation or annotation: problems done, those on disk from an earlier run included, and how their answers fare."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = problem_source(trainer).num_problems
        self.total = None if total is None else -(-total // trainer.world_size)
        self.before = progress_of(pl_module).metrics.num_problems
        self.pace.start(self._share(self.before))
        self._write(pl_module)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        if self.pace.is_due(self._share(progress_of(pl_module).metrics.num_problems)):
            self._write(pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(pl_module)

    def _share(self, done: int) -> float | None:
        return done / self.total if self.total else None

    def _write(self, pl_module: LightningModule) -> None:
        module = progress_of(pl_module)
        done = module.metrics.num_problems
        count = f"{done} problems" if self.total is None else f"{done}/{self.total} problems"
        speed = rate(done - self.before, self.pace.elapsed, "problem")
        self.write(count, speed, self._share(done), module.progress_news())


class TrainingLines(ProgressLines):
    """A training: epoch, batch and optimizer step, and what the training shows in its bar."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steps_before = trainer.global_step
        self.pace.start(share_of_training(trainer, 0))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        share = share_of_training(trainer, batch_idx + 1)
        if self.pace.is_due(share):
            of = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
            batches = f"batch {batch_idx + 1}/{trainer.num_training_batches}"
            self._write(trainer, pl_module, f"epoch {trainer.current_epoch + 1}{of}, {batches}", share)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if not trainer.sanity_checking and self.pace.is_due(None):
            total = sum(trainer.num_val_batches)
            self._write(trainer, pl_module, f"validation, batch {batch_idx + 1}/{total}", None)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module, "training ends", None)

    def _write(self, trainer: Trainer, pl_module: LightningModule, where: str, share: float | None) -> None:
        speed = rate(trainer.global_step - getattr(self, "steps_before", 0), self.pace.elapsed, "step")
        found = self.get_metrics(trainer, pl_module)  # waits for the device, and so only where a line is due
        self.write(f"{where}, step {trainer.global_step}", speed, share, " · ".join(running_figures(found)))


def running_figures(metrics: Mapping[str, Any]) -> list[str]:
    """`train/loss 0.1234`, of every number that a training shows in its bar."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, (int, float)) and name != "v_num"}
    return [f"{name} {value:.4g}" for name, value in numbers.items()]


def share_of_training(trainer: Trainer, batches: int) -> float | None:
    """How much of a training is done after so many batches of its epoch; None where neither epochs nor steps are limited."""
    shares = []
    if (trainer.max_epochs or -1) > 0 and trainer.num_training_batches not in (0, float("inf")):
        shares.append((trainer.current_epoch + batches / trainer.num_training_batches) / float(trainer.max_epochs or 1))
    if trainer.max_steps > 0:
        shares.append(trainer.global_step / trainer.max_steps)
    return max(shares, default=None)
