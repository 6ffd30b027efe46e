"""SIGTERM ends a predict run at the batch it finds, with every writer told, and leaves no handler behind."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from callbacks.termination import EndOnTermination


class Terminated(LightningModule):
    """Sends itself SIGTERM in its third batch of ten."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def predict_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.batches.append(batch_idx)
        if batch_idx == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch


class Closed(Callback):
    """Remembers what a writer would be told."""

    def __init__(self) -> None:
        self.told: list[BaseException] = []

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.told.append(exception)


def test_termination_ends_the_run_in_its_batch_and_tells_the_writers(tmp_path):
    module, closed, before = Terminated(), Closed(), signal.getsignal(signal.SIGTERM)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[EndOnTermination(), closed],
    )
    with pytest.raises(SystemExit) as ended:
        trainer.predict(module, DataLoader(torch.arange(10), batch_size=1))
    assert ended.value.code == 143
    assert module.batches == [0, 1, 2]
    assert [type(error) for error in closed.told] == [SystemExit]
    assert signal.getsignal(signal.SIGTERM) == before
