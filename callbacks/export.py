"""From a Lightning checkpoint to a folder in the published layout.

python -m callbacks.export runs/tiny-coconut/checkpoints/last.ckpt --out checkpoints/tiny-coconut
"""

from __future__ import annotations

import argparse
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from commands.guard import main_guard
from latent_tts.backbones.adapters import save_adapters
from latent_tts.backbones.base import LatentBackbone
from latent_tts.backbones.kinds import KINDS
from latent_tts.backbones.lora import LoRA, add_lora, merged
from latent_tts.backbones.training import load_for_training
from latent_tts.errors import UserError

StorageType = Literal["float32", "bfloat16"]


class ExportBest(Callback, ABC):
    """At the end of a fit, hands the best checkpoint's weights (the last ones where none was monitored) to `write`.

    Args:
        folder: Where to write.
        dtype: Type the weights are stored in.
    """

    def __init__(self, folder: str, dtype: StorageType = "float32") -> None:
        self.folder = Path(folder)
        self.dtype: StorageType = dtype

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        best = best_checkpoint(trainer)
        weights = None if best is None else torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
        self.write(pl_module, weights)
        rank_zero_info(f"wrote {self.folder} from {best or 'the last weights'}")

    @abstractmethod
    def write(self, module: LightningModule, weights: dict[str, Any] | None) -> None:
        """Writes what the module trained, with these weights of its checkpoint, or as it is."""


class ExportBackbone(ExportBest):
    """Writes the trained backbone as a folder that `load_backbone` reads; LoRA adapters are merged, or stored alone.

    Args:
        folder: Where to write.
        dtype: Type the weights are stored in.
        adapters_only: Whether to leave out the weights of the base model, which then has to be where it was in training.
    """

    def __init__(self, folder: str, dtype: StorageType = "float32", adapters_only: bool = False) -> None:
        super().__init__(folder, dtype)
        self.adapters_only = adapters_only

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raises UserError before a training, not after it, where there will be no adapters to store."""
        if self.adapters_only and getattr(pl_module, "lora", None) is None:
            raise UserError(
                "adapters_only exports the adapters of a training, and this one has none: give --model.lora."
            )

    def write(self, module: LightningModule, weights: dict[str, Any] | None) -> None:
        backbone = cast(LatentBackbone, module.backbone)
        if weights is not None:
            load_backbone_weights(backbone, weights)
        save(backbone, cast(str, module.source), self.folder, self.dtype, self.adapters_only)


def save(backbone: LatentBackbone, source: str, folder: Path, dtype: StorageType, adapters_only: bool) -> None:
    """Writes a trained backbone, merged or as the adapters on `source`."""
    if adapters_only:
        save_adapters(backbone, source, folder, getattr(torch, dtype))
    else:
        merged(backbone).save_pretrained(folder, dtype=getattr(torch, dtype))


def best_checkpoint(trainer: Trainer) -> str | None:
    """Path of the best monitored checkpoint, None where nothing was monitored."""
    paths = [c.best_model_path for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor]
    return next((path for path in paths if path), None)


def load_backbone_weights(backbone: LatentBackbone, state_dict: dict[str, Any]) -> None:
    """Copy the `backbone.*` entries of a Lightning state dict, strictly."""
    weights = {key.removeprefix("backbone."): v for key, v in state_dict.items() if key.startswith("backbone.")}
    backbone.load_state_dict(weights, strict=True)


def export_checkpoint(checkpoint: Path, out: Path, dtype: StorageType, adapters_only: bool = False) -> None:
    """Write the backbone of a Lightning checkpoint as a published-layout folder, adapters merged or alone.

    The model that the training started from must still be where it was: shape and tokenizer are taken from there.

    Raises:
        UserError: The file is no checkpoint of a BackboneModule, or there are no adapters in it to store alone.
    """
    if not checkpoint.is_file():
        raise UserError(f"There is no checkpoint {str(checkpoint)!r}; a run writes them to checkpoints/*.ckpt.")
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if "backbone" not in content:
        raise UserError(f"{str(checkpoint)!r} was not written by a training of a backbone.")
    backbone = backbone_of_checkpoint(content)
    save(backbone, content["backbone"]["source"], out, dtype, adapters_only)
    print(f"wrote {out}: {backbone.kind}, epoch {content['epoch']}")


def backbone_of_checkpoint(content: dict[str, Any]) -> LatentBackbone:
    """The backbone as it was when `BackboneModule` wrote the checkpoint."""
    made, metadata = content["backbone"], content["backbone"]["metadata"]
    backbone = load_for_training(
        KINDS[metadata["kind"]], made["source"], metadata["num_latents"], metadata["prompt_form"], made["config"]
    )
    if made["lora"] is not None:
        add_lora(backbone, LoRA(**made["lora"]))
    load_backbone_weights(backbone, content["state_dict"])
    return backbone


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a Lightning checkpoint's backbone in the published layout.")
    parser.add_argument("checkpoint", type=Path, help="Lightning checkpoint (.ckpt) of a backbone's training.")
    parser.add_argument("--out", type=Path, required=True, help="Folder to write.")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="Storage type.")
    parser.add_argument("--adapters-only", action="store_true", help="Leave out the weights of the base model.")
    options = parser.parse_args()
    export_checkpoint(options.checkpoint, options.out, options.dtype, options.adapters_only)


if __name__ == "__main__":
    sys.exit(main_guard(main))
