"""Run by a test, on each of two gloo processes: commands and trainings one after the other. Argument: the working folder.

Its two_processes.json lists the words of commands that run first, each after the name of its command line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from callbacks.export import ExportModel
from callbacks.training_folder import KeepLast
from commands.annotate import AnnotationCLI
from commands.train import TrainingCLI
from datamodules.annotated_rollout_data import AnnotatedRolloutDataModule
from latent_tts.training.optimization import Optimization
from lightning_modules.latent_rm_module import LatentRMModule
from lightning_modules.sharding import gradients
from tests.training import MAKERS, flat_gradients, flat_weights, make_data, make_trainer

COMMANDS: dict[str, Callable[[list[str]], object]] = {
    "train": TrainingCLI,
    "annotate": lambda words: AnnotationCLI(words).run(),
}
SHARDED = ("coconut", "latent-rm")
SHARDED_EPOCHS = (1, 2)
"""Of the first training, and of the second, which goes on from it."""


def train_and_validate(kind: str, folder: Path) -> None:
    """Two accumulated batches of two in each process; validated on 5 problems, then on 2."""
    module = MAKERS[kind](folder / "model", global_batch_size=8, lr=1e-3)
    trainer = make_trainer(max_epochs=4, check_val_every_n_epoch=5, devices=2, strategy="ddp")
    trainer.fit(module, make_data(folder, batch_size=2))
    weights, found = flat_weights(module), flat_gradients(module)
    results = [trainer.validate(module, make_data(folder, 2, val_size), verbose=False)[0] for val_size in (5, 2)]
    if trainer.is_global_zero:
        torch.save({"weights": weights, "gradients": found, "results": results}, folder / f"{kind}.pt")


class Steps(Callback):
    """Loss and gradient norm of every step; the gradients are those that are clipped."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.squares: list[float] = []

    def on_fit_start(self, trainer, pl_module) -> None:
        clip = pl_module.configure_gradient_clipping

        def measured(*args: Any, **kwargs: Any) -> None:
            self.squares.append(sum(float(part.square().sum()) for part in gradients(pl_module)))
            clip(*args, **kwargs)

        pl_module.configure_gradient_clipping = measured

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


def make(folder: Path, kind: str) -> tuple[Any, Any]:
    """A training and its data, of which a global batch is two micro batches of each process."""
    if kind != "latent-rm":
        module = MAKERS[kind](folder / "model", global_batch_size=8, lr=1e-3, warmup_steps=2)
        return module, make_data(folder, batch_size=2)
    options: dict[str, Any] = {"optimization": Optimization(lr=1e-3, warmup_steps=2), "global_batch_size": 8}
    data = AnnotatedRolloutDataModule(str(folder / "annotations"), batch_size=2, val_share=0.25)
    return LatentRMModule(str(folder / "backbone"), loss="bce", head="mlp", **options), data


def train_shared_out(kind: str, strategy: str, folder: Path) -> None:
    out = folder / f"{kind}-{strategy}"
    for epochs in SHARDED_EPOCHS:
        module, data = make(folder, kind)
        steps, last = Steps(), out / "last.ckpt"
        best = ModelCheckpoint(
            out, "best", module.monitor, mode="max", save_weights_only=True, enable_version_counter=False
        )
        trainer = make_trainer(
            max_epochs=epochs, limit_train_batches=4, devices=2, strategy=strategy, gradient_clip_val=1.0,
            enable_checkpointing=True, callbacks=[steps, best, KeepLast(last), ExportModel(out / "model")],
        )  # fmt: skip
        trainer.fit(module, data, ckpt_path=last if epochs > SHARDED_EPOCHS[0] else None, weights_only=True)
        squares = trainer.strategy.reduce(torch.tensor(steps.squares), reduce_op="sum")
        if trainer.is_global_zero:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            torch.save({"losses": steps.losses, "squares": squares, "metrics": metrics}, out / f"{epochs}.pt")


def main(folder: Path) -> None:
    for name, words in json.loads((folder / "two_processes.json").read_text()):
        COMMANDS[name](words)
    for kind in MAKERS:
        train_and_validate(kind, folder)
    for kind in SHARDED:
        for strategy in ("ddp", "fsdp"):
            train_shared_out(kind, strategy, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
