"""At the end of a training, its model as a folder in the published layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from latent_tts.errors import UserError
from latent_tts.files.whole import whole_folder
from lightning_modules.checkpoint_reading import read_checkpoint
from lightning_modules.hyperparameters import restored
from lightning_modules.sharding import whole_weights
from lightning_modules.training_module import TrainingModule

StorageType = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Export:
    """How the model is written at the end of a training."""

    weights: Literal["best", "last"] = "best"
    """Whose weights: the best checkpoint's (where nothing was validated, the last ones), or the last ones in any case."""
    dtype: StorageType = "float32"
    """Type the weights are stored in."""
    adapters_only: bool = False
    """Whether to leave out the weights of the base model, which then has to be where it was in training."""


class ExportModel(Callback):
    """Writes what was trained when the training has ended.

    Args:
        folder: Where to write.
        options: Which weights, and how they are stored.
    """

    def __init__(self, folder: str | Path, options: Export | None = None) -> None:
        self.folder, self.options = Path(folder), options or Export()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raises UserError before a training, not after it, where there will be no adapters to store."""
        if self.options.adapters_only and getattr(pl_module, "lora", None) is None:
            raise UserError(
                "adapters_only exports the adapters of a training, and this one has none: give --model.lora."
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        whole = whole_weights(pl_module)
        if not trainer.is_global_zero:
            return
        best = best_checkpoint(trainer) if self.options.weights == "best" else None
        if whole is not None:  # what was shared out is put together in a module of its own
            pl_module = type(pl_module)(**restored(type(pl_module), dict(pl_module.hparams)))
            pl_module.load_state_dict(whole, strict=True)
        if best is not None:
            pl_module.load_state_dict(read_checkpoint(best)["state_dict"], strict=True)
        with whole_folder(self.folder) as aside:
            pl_module.export(aside, self.options.dtype, self.options.adapters_only)
        rank_zero_info(f"wrote {self.folder} from {best or 'the last weights'}")


def best_checkpoint(trainer: Trainer) -> str | None:
    """Path of the best monitored checkpoint, None where nothing was monitored."""
    paths = [c.best_model_path for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor]
    return next((path for path in paths if path), None)
