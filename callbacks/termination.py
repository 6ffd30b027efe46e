"""A run that is asked to stop (by a scheduler, `kill` or Ctrl-C) stops at a safe point, whichever rank gets the signal."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.signals import STOP

_STEP = 120.0  # seconds to the next optimizer step of a training
_VALIDATION = 20.0  # seconds to the end of a validation
_CHECKPOINT = 600.0  # seconds that writing a checkpoint may take


class StopOnSignal(Callback):
    """Stops a run on SIGTERM, SIGINT, SIGUSR1, SIGUSR2, SIGXCPU and those of `callbacks.signals.REQUEUE_VARIABLE`.

    A prediction stops where it is, between the writes of its records, and closes its files. A training stops before the next
    optimizer step, on all ranks before the same one, and writes a checkpoint from which the same command goes on. During a
    validation it waits `_VALIDATION` seconds for its end, and then stops with the last checkpoint as it is. The run ends with
    `StoppedBySignal`.

    Lightning's own handlers are not installed: they make a collective call inside the handler, write a checkpoint of whatever
    runs into the working directory, and load it into the next run there.

    Args:
        checkpoint: File that a training writes; by default `last.ckpt` beside the files of the `ModelCheckpoint` that keeps
            the last state, and none where there is no such callback.
    """

    def __init__(self, checkpoint: str | Path | None = None) -> None:
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self._listening = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        without_lightnings_signals(trainer)
        # a command listens from its start; this is for trainers outside of one
        self._listening.enter_context(STOP.listen())

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._listening.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "")

    # Prediction -------------------------------------------------------------------------------------------------------

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        STOP.release()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """What writers do with the batch is not interrupted, so that each problem is written once."""
        STOP.hold(patience=5.0)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        STOP.release()

    # Training ---------------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        STOP.hold(_STEP)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            STOP.hold(_VALIDATION)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            STOP.hold(_STEP)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The safe point: the optimizer has stepped, what followed the step is done, and all ranks come here equally often."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        signum = agreed_signal(trainer)
        if signum:
            STOP.stop(signum, self._save(trainer))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is left to interrupt but the callbacks that come after: they finish."""
        STOP.hold(_STEP)

    def _save(self, trainer: Trainer) -> str:
        path = self.checkpoint or last_checkpoint(trainer)
        if path is None:
            return ""
        STOP.allow(_CHECKPOINT)
        trainer.save_checkpoint(path)
        return f"step {trainer.global_step} is in {path}"


def agreed_signal(trainer: Trainer) -> int:
    """The signal that came to any rank, 0 where there is none: the same on all ranks. A collective call."""
    signum = STOP.signum or 0
    if trainer.world_size == 1:
        return signum
    numbers = torch.tensor(signum, device=trainer.strategy.root_device)
    return int(cast(torch.Tensor, trainer.strategy.reduce(numbers, reduce_op="max")))


def last_checkpoint(trainer: Trainer) -> Path | None:
    """The file that the trainer's `ModelCheckpoint` of the last state writes; None without one."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath:
            if callback.save_last:
                return Path(callback.dirpath) / f"{callback.CHECKPOINT_NAME_LAST}.ckpt"
            if callback.filename == "last":
                return Path(callback.dirpath) / "last.ckpt"
    return None


def without_lightnings_signals(trainer: Trainer) -> None:
    """Makes a trainer install no signal handlers, and look for no checkpoint that such a handler has left."""
    trainer._signal_connector = _NoSignals(trainer)
    if not isinstance(trainer._checkpoint_connector, _OnlyNamedCheckpoints):
        trainer._checkpoint_connector = _OnlyNamedCheckpoints(trainer)


class _NoSignals(_SignalConnector):
    def register_signal_handlers(self) -> None:
        pass


class _OnlyNamedCheckpoints(_CheckpointConnector):
    @property
    def _hpc_resume_path(self) -> str | None:
        return None
