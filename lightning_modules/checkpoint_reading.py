"""What a checkpoint of a training holds: data alone, of which nothing is imported or run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from latent_tts.errors import UserError


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """What a checkpoint of a training holds; nothing but data is loaded from it.

    Raises:
        UserError: It is not there, cut off, or no checkpoint of a training.
    """
    if not Path(path).is_file():
        raise UserError(f"There is no checkpoint {str(path)!r}; a run writes them to its folder's checkpoints/.")
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # a cut-off file raises whatever the part that is missing makes torch raise
        raise UserError(
            f"{str(path)!r} cannot be read as a checkpoint ({type(error).__name__}): it may be cut off or no checkpoint at all."
        ) from error
    if not isinstance(content, dict) or "training" not in content:
        raise UserError(f"{str(path)!r} was not written by a training of this project.")
    return content
