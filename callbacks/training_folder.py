"""Keeps the folder of a training: its configuration and description, and the checkpoint from which it goes on."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping, ModelCheckpoint

from latent_tts.evaluation.provenance import now, seconds_worked
from latent_tts.files.whole import write_whole


class KeepLast(Checkpoint):
    """Writes `last.ckpt` after every epoch, and in between every few minutes where an optimizer step has just been taken.

    Args:
        file: The checkpoint.
        minutes: Minutes between two checkpoints within an epoch; None writes none there.
    """

    def __init__(self, file: Path, minutes: float | None = 15.0) -> None:
        self.file, self.minutes = file, minutes
        self._written = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._written = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Between two optimizer steps, where Lightning counts the batches before as completed.

        At the end of a batch it does not, and a training with a validation that went on from there took other steps.
        """
        if self.minutes is None or batch_idx == 0 or batch_idx % trainer.accumulate_grad_batches:
            return  # gradients of a window that is not complete are in no checkpoint
        if self._is_due(trainer, self.minutes):
            self._write(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def _is_due(self, trainer: Trainer, minutes: float) -> bool:
        """By the clock of rank 0: a checkpoint is written by all processes together."""
        due = time.monotonic() - self._written >= 60.0 * minutes
        return bool(trainer.strategy.broadcast(due)) if trainer.world_size > 1 else due

    def _write(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.file)
        self._written = time.monotonic()


class KeepRun(Callback):
    """Writes `config.yaml` and `run.json` when a training begins, and says in `run.json` how it ended.

    Args:
        folder: Of the training.
        config: The whole configuration, as YAML.
        description: What `run.json` holds from the start.
    """

    def __init__(self, folder: Path, config: str, description: dict[str, Any]) -> None:
        self.folder, self.config, self.description = folder, config, description
        self._began = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing has been written before, so that a run that fails at once leaves an earlier one as it was."""
        if trainer.is_global_zero:
            self._began = time.monotonic()
            for name, part in (("data_commits", getattr(trainer, "datamodule", None)), ("model_commits", pl_module)):
                if commits := getattr(part, "commits", {}):
                    self.description |= {name: commits}
            write_whole(self.folder / "config.yaml", self.config)
            self._write(self.description | {"state": "running"})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            state = {"state": "finished" if has_ended(trainer) else "stopped", "steps": trainer.global_step}
            self._write(self.description | state | {"epochs": trainer.current_epoch} | _best(trainer))

    def _write(self, entries: dict[str, Any]) -> None:
        file = self.folder / "run.json"
        before = json.loads(file.read_text()) if file.exists() else {}
        seconds = seconds_worked(self.description.get("seconds_before", 0.0), self._began)
        entries = {key: value for key, value in entries.items() if key != "seconds_before"}
        entries |= {"started": before.get("started", entries["started"]), "seconds": seconds}
        entries |= {"ended": now()}
        write_whole(file, json.dumps(entries, indent=2, ensure_ascii=False) + "\n")


def _best(trainer: Trainer) -> dict[str, Any]:
    """The best value of the metric that checkpoints are chosen by, where one was measured."""
    kept = next((callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)), None)
    if kept is None or kept.best_model_score is None:
        return {}
    return {"best": {"metric": kept.monitor, "value": float(kept.best_model_score)}}


def has_ended(trainer: Trainer) -> bool:
    """Whether a training has gone through all of its steps, or was ended by `EarlyStopping`; false after `max_time`."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    if any(isinstance(callback, EarlyStopping) and callback.stopped_epoch for callback in trainer.callbacks):  # type: ignore[attr-defined]
        return True
    by_epochs = epochs is not None and epochs != -1 and trainer.current_epoch >= epochs
    return by_epochs or (steps != -1 and trainer.global_step >= steps)
