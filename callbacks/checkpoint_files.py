"""Checkpoints of a training as files that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from latent_tts.files.whole import put_in_place


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place, on the same file system, syncs it and renames it.

    Lightning's own is written to the folder of temporary files, whose size then limits checkpoints, and moved: between two file
    systems that is a copy, which a kill leaves half done under the name of the last good one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        # by Python's file: torch's own says of a full disk that it found an unexpected position
        with put_in_place(file) as aside, aside.open("wb") as stream:
            torch.save(checkpoint, stream)
