"""At the end of a training, its model as a folder in the published layout."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from latent_tts.errors import UserError
from lightning_modules.training_module import TrainingModule, read_checkpoint

StorageType = Literal["float32", "bfloat16"]


class ExportModel(Callback):
    """Writes what was trained, with the best checkpoint's weights (the last ones where none was monitored).

    Args:
        folder: Where to write.
        dtype: Type the weights are stored in.
        adapters_only: Whether to leave out the weights of the base model, which then has to be where it was in training.
    """

    def __init__(self, folder: str, dtype: StorageType = "float32", adapters_only: bool = False) -> None:
        self.folder, self.adapters_only = Path(folder), adapters_only
        self.dtype: StorageType = dtype

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raises UserError before a training, not after it, where there will be no adapters to store."""
        if self.adapters_only and getattr(pl_module, "lora", None) is None:
            raise UserError(
                "adapters_only exports the adapters of a training, and this one has none: give --model.lora."
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, TrainingModule)
        best = best_checkpoint(trainer)
        if best is not None:
            pl_module.load_state_dict(read_checkpoint(best)["state_dict"], strict=True)
        pl_module.export(self.folder, self.dtype, self.adapters_only)
        rank_zero_info(f"wrote {self.folder} from {best or 'the last weights'}")


def best_checkpoint(trainer: Trainer) -> str | None:
    """Path of the best monitored checkpoint, None where nothing was monitored."""
    paths = [c.best_model_path for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor]
    return next((path for path in paths if path), None)
