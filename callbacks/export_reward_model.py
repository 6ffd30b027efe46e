"""From a Lightning checkpoint to a reward model's folder.

python -m callbacks.export_reward_model runs/latent-rm-tiny/checkpoints/best.ckpt --out checkpoints/tiny-latent-rm
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule

from callbacks.export import ExportBest, StorageType
from commands.guard import main_guard
from latent_tts.errors import UserError
from lightning_modules.latent_rm_module import LatentRMModule


class ExportRewardModel(ExportBest):
    """Writes the trained reward model as a folder that `load_reward_model` reads."""

    def write(self, module: LightningModule, weights: dict[str, Any] | None) -> None:
        assert isinstance(module, LatentRMModule)
        if weights is not None:
            module.load_state_dict(weights, strict=True)
        module.reward_model.save_pretrained(self.folder, dtype=getattr(torch, self.dtype))


def export_reward_model(checkpoint: str | Path, folder: str | Path, dtype: StorageType = "float32") -> None:
    """Writes the reward model of a Lightning checkpoint as a folder that `load_reward_model` reads.

    The backbone it was trained from must still be where it was: its tokenizer and configuration are taken from there.

    Raises:
        UserError: There is no such checkpoint.
    """
    if not Path(checkpoint).is_file():
        raise UserError(f"there is no checkpoint {checkpoint}; training writes them to its checkpoints folder")
    module = LatentRMModule.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    module.reward_model.save_pretrained(folder, dtype=getattr(torch, dtype))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the reward model of a training checkpoint as a folder.")
    parser.add_argument("checkpoint", help="Lightning checkpoint of a LatentRMModule")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16"], help="type the weights are stored in"
    )
    arguments = parser.parse_args()
    export_reward_model(arguments.checkpoint, arguments.out, arguments.dtype)


if __name__ == "__main__":
    sys.exit(main_guard(main))
