"""Trains with activations that are computed again in the backward pass, for models whose activations do not fit."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from latent_tts.errors import UserError
from latent_tts.training.activations import checkpoint_blocks
from lightning_modules.training_module import TrainingModule


class CheckpointActivations(Callback):
    """Lets the transformer blocks of a `TrainingModule` be computed again; see `latent_tts.training.activations`."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, TrainingModule):
            raise UserError(f"Activations are those of a TrainingModule, not of a {type(pl_module).__name__}.")
        if stage == "fit":
            checkpoint_blocks(pl_module.trained)
