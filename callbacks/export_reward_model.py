"""From a Lightning checkpoint to a reward model's folder.

python -m callbacks.export_reward_model runs/latent-rm-tiny/checkpoints/best.ckpt --out checkpoints/tiny-latent-rm
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from callbacks.export import StorageType, best_checkpoint
from latent_tts.cli import main_guard
from latent_tts.errors import UserError
from lightning_modules.latent_rm_module import LatentRMModule


class ExportRewardModel(Callback):
    """At the end of a fit, writes the best checkpoint's reward model (the last weights where none was monitored) as a folder
    that `load_reward_model` reads.

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
        assert isinstance(pl_module, LatentRMModule)
        best = best_checkpoint(trainer)
        if best is not None:
            pl_module.load_state_dict(
                torch.load(best, map_location="cpu", weights_only=True)["state_dict"], strict=True
            )
        pl_module.reward_model.save_pretrained(self.folder, dtype=getattr(torch, self.dtype))
        rank_zero_info(f"wrote {self.folder} from {best or 'the last weights'}")


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
