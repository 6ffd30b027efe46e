"""Run by tests and by tests/soak: trains, or predicts, with gloo processes until a signal stops it.

Arguments: model folder, working folder, `fit` or `predict`, number of processes. Every rank writes its process id to
rank-R.pid when its work has begun, and the step at which it ends to rank-R.end.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from callbacks.termination import StopOnSignal, without_lightnings_signals
from commands.guard import main_guard
from commands.launch import watch_ranks
from tests.training import make_cot, make_data, make_trainer


class Report(Callback):
    """Says where a rank is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _began(self, rank: int) -> None:
        (self.folder / f"rank-{rank}.pid").write_text(str(os.getpid()))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._began(trainer.global_rank)

    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._began(trainer.global_rank)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        (self.folder / f"rank-{trainer.global_rank}.end").write_text(
            f"{trainer.global_step} {type(exception).__name__}"
        )


class Slow(LightningModule):
    """A second a batch."""

    def predict_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        for _ in range(100):
            time.sleep(0.01)


def main(model: Path, folder: Path, what: str, processes: int) -> None:
    kept = ModelCheckpoint(folder / "checkpoints", filename="last", enable_version_counter=False)
    more: dict[str, Any] = {"callbacks": [StopOnSignal(), Report(folder), *([kept] if what == "fit" else [])]}
    if processes > 1:
        more["strategy"] = DDPStrategy(process_group_backend="gloo")
    trainer = make_trainer(max_epochs=1000, devices=processes, enable_checkpointing=what == "fit", **more)
    without_lightnings_signals(trainer)
    watch_ranks(trainer)
    if what == "fit":
        last = folder / "checkpoints" / "last.ckpt"
        module = make_cot(model, global_batch_size=8, lr=1e-3, schedule="constant")
        trainer.fit(module, make_data(folder, batch_size=2), ckpt_path=last if last.exists() else None)
    else:
        trainer.predict(Slow(), DataLoader(torch.arange(10000), batch_size=1), return_predictions=False)  # type: ignore[arg-type]


if __name__ == "__main__":
    arguments = sys.argv[1:]
    raise SystemExit(main_guard(lambda: main(Path(arguments[0]), Path(arguments[1]), arguments[2], int(arguments[3]))))
