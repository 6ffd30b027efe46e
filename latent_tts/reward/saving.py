"""A reward model's folder: weights under the keys of the published layout, and what that layout leaves implicit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from latent_tts.backbones.metadata import METADATA_FILE


def write_checkpoint(
    folder: Path,
    weights: dict[str, Tensor],
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    metadata: dict[str, Any],
    dtype: torch.dtype,
) -> None:
    """Writes weights in their storage type, configuration, tokenizer and metadata; the folder is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = {key: value.detach().to("cpu", dtype).contiguous() for key, value in weights.items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    fields = config.to_diff_dict() | {"model_type": config.model_type, "dtype": str(dtype).removeprefix("torch.")}
    fields["architectures"] = [f"{metadata['kind'].upper()}ForTokenClassification"]
    (folder / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True, default=str) + "\n")
    tokenizer.save_pretrained(folder)
    (folder / METADATA_FILE).write_text(json.dumps(metadata, indent=2) + "\n")
