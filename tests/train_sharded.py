"""Run by a test: trains with two gloo processes, shared out or not. Arguments: model folder, working folder, kind, strategy."""

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from callbacks.export import ExportModel
from callbacks.training_folder import KeepLast
from datamodules.annotated_rollout_data import AnnotatedRolloutDataModule
from latent_tts.training.optimization import Optimization
from lightning_modules.latent_rm_module import LatentRMModule
from lightning_modules.sharding import gradients
from tests.training import MAKERS, make_data, make_trainer


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


def make(model: Path, folder: Path, kind: str) -> tuple[Any, Any]:
    """A training and its data, of which a global batch is two micro batches of each process."""
    if kind != "latent-rm":
        return MAKERS[kind](model, global_batch_size=8, lr=1e-3, warmup_steps=2), make_data(folder, batch_size=2)
    options: dict[str, Any] = {"optimization": Optimization(lr=1e-3, warmup_steps=2), "global_batch_size": 8}
    data = AnnotatedRolloutDataModule(str(model / "annotations"), batch_size=2, val_share=0.25)
    return LatentRMModule(str(model / "backbone"), loss="bce", head="mlp", **options), data


def main(model: Path, folder: Path, kind: str, strategy: str) -> None:
    out = folder / f"{kind}-{strategy}"
    for epochs in (2, 4):  # the second goes on from the first
        module, data = make(model, folder, kind)
        steps, last = Steps(), out / "last.ckpt"
        best = ModelCheckpoint(
            out, "best", module.monitor, mode="max", save_weights_only=True, enable_version_counter=False
        )
        trainer = make_trainer(
            max_epochs=epochs, limit_train_batches=4, devices=2, strategy=strategy, gradient_clip_val=1.0,
            enable_checkpointing=True, callbacks=[steps, best, KeepLast(last), ExportModel(out / "model")],
        )  # fmt: skip
        trainer.fit(module, data, ckpt_path=last if epochs == 4 else None, weights_only=True)
        squares = trainer.strategy.reduce(torch.tensor(steps.squares), reduce_op="sum")
        if trainer.is_global_zero:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            torch.save({"losses": steps.losses, "squares": squares, "metrics": metrics}, out / f"{epochs}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4])
