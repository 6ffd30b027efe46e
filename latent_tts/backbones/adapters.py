"""A backbone as what it adds to a base model: low-rank factors, and the weights and rows that the base does not have.

The folder has the published layout, but for its weights: ``adapter_model.safetensors`` and ``adapter_config.json`` in the layout
of peft, which name the base. Beside the factors the weights' file holds, under the backbone's own keys, every other weight that
is not the base's, and under ``<key>.added_rows`` what was put behind a table of the base (the embeddings of the thought tokens).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from latent_tts.backbones.base import LatentBackbone
from latent_tts.backbones.causal_lm import load_causal_lm
from latent_tts.backbones.files import read_json, resolve_folder
from latent_tts.backbones.fingerprint import fingerprint
from latent_tts.backbones.metadata import METADATA_FILE, read_metadata
from latent_tts.backbones.weight_files import read_safetensors
from latent_tts.backbones.weights import tied_keys
from latent_tts.errors import UserError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
FACTOR_PREFIX = "base_model.model."  # peft's names for what it wraps a model in
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
ADDED_ROWS = ".added_rows"


def save_adapters(backbone: LatentBackbone, base: str, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes a backbone that was trained with `add_lora`, without the weights that it shares with its base.

    Args:
        backbone: With its adapters, not merged.
        base: Folder or hub id of the causal LM that the adapters were put on.
        folder: Where to write; made if it is not there.
        dtype: Storage type of the weights; ``None`` keeps the model's.

    Raises:
        UserError: The backbone has no adapters, or its base cannot be read or has adapters itself.
    """
    configs = getattr(backbone.model, "peft_config", None)
    if not configs:
        raise UserError("This backbone was trained in full, without adapters: export the whole of it, or extract some.")
    (config,) = configs.values()
    base_weights = weights_of_base(load_causal_lm(whole_model(base)))
    write_adapters(folder, backbone, config.to_dict(), added_weights(backbone, base_weights), base, base_weights, dtype)


def load_adapters(backbone: LatentBackbone, folder: Path) -> None:
    """Gives fresh adapters of a backbone the factors that are stored in a folder, and its base the other weights there.

    Raises:
        UserError: They belong to another base, or are not of the same shape.
    """
    config, stored = read_json(folder / ADAPTER_CONFIG), read_safetensors(folder)
    targets = {
        name.replace(".base_layer.", ".").replace(".default.", "."): p for name, p in backbone.named_parameters()
    }
    for key, value in _checked_base(folder, config).items():
        if not _same(targets[f"model.{key}"].data[: len(value)], value):
            raise UserError(f"The adapters in {folder} belong to another base than this model ({key} differs).")
    fresh: Any = next(iter(backbone.model.peft_config.values()))
    scale = config["lora_alpha"] / config["r"] * fresh.r / fresh.lora_alpha
    for key, value in stored.items():
        name = key.removeprefix(FACTOR_PREFIX).removesuffix(ADDED_ROWS)
        target: Tensor | None = targets.get(f"model.{name}", targets.get(name))
        if target is not None and key.endswith(ADDED_ROWS):
            target = target[-len(value) :]
        if target is None or target.shape != value.shape:
            raise UserError(
                f"The adapters in {folder} do not fit: {key} {tuple(value.shape)} has no place of its shape in this model, "
                f"whose adapters have rank {fresh.r}."
            )
        with torch.no_grad():
            target.copy_(value * scale if key.endswith(UP) else value)


def whole_model(base: str) -> Path:
    """The folder of a model that adapters can be put on.

    Raises:
        UserError: There is no such model, or it is stored as adapters itself.
    """
    folder = resolve_folder(base)
    if has_adapters(folder):
        raise UserError(f"{base} is itself stored as adapters, on which no others can be put: name a whole model.")
    return folder


def write_adapters(
    folder: str | Path,
    backbone: LatentBackbone,
    config: dict[str, Any],
    added: dict[str, Tensor],
    base: str,
    base_weights: dict[str, Tensor],
    dtype: torch.dtype | None,
) -> None:
    """Writes a folder of adapters: what `added_weights` found, or what stands for it, and all that describes it."""
    from safetensors.torch import save_file

    folder = Path(folder)
    backbone.save_layout(folder, dtype)
    stored = {key: (value if dtype is None else value.to(dtype)).contiguous().cpu() for key, value in added.items()}
    save_file(stored, folder / ADAPTER_WEIGHTS, {"format": "pt"})
    described = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    described |= {"base_model_name_or_path": base, "task_type": "CAUSAL_LM", "inference_mode": True}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(described, indent=2, sort_keys=True, default=str) + "\n")
    metadata = backbone.metadata() | {"base_fingerprint": fingerprint(base_weights)}
    (folder / METADATA_FILE).write_text(json.dumps(metadata, indent=2) + "\n")


def has_adapters(folder: Path) -> bool:
    """Whether a checkpoint folder holds adapters in place of a whole model."""
    return (folder / ADAPTER_CONFIG).exists()


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights of a checkpoint folder by key, those of adapters merged into their base.

    Raises:
        UserError: A file is missing or malformed, or the base is not there or is another one.
    """
    return _merged_weights(folder) if has_adapters(folder) else read_safetensors(folder)


def _merged_weights(folder: Path) -> dict[str, Tensor]:
    config = read_json(folder / ADAPTER_CONFIG)
    weights = _checked_base(folder, config)
    added = {key: value.float() for key, value in read_safetensors(folder).items()}
    scale = config["lora_alpha"] / config["r"]
    for key, value in added.items():
        if key.endswith(DOWN):
            name = key.removeprefix(FACTOR_PREFIX).removesuffix(DOWN) + ".weight"
            product = added[key.removesuffix(DOWN) + UP] @ value
            weights[name] = weights[name] + scale * (product.T if config["fan_in_fan_out"] else product)
        elif key.endswith(ADDED_ROWS):
            name = key.removesuffix(ADDED_ROWS)
            weights[name] = torch.cat([weights[name], value])
        elif not key.endswith(UP):
            weights[key] = value
    return weights


def _checked_base(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of the base that adapters were trained on.

    Raises:
        UserError: The base is not there, or has other weights by now.
    """
    base = config["base_model_name_or_path"]
    try:
        weights = weights_of_base(load_causal_lm(whole_model(base)))
    except UserError as error:
        raise UserError(f"The adapters in {folder} need the model that they were trained on. {error}") from error
    if fingerprint(weights) != read_metadata(folder).get("base_fingerprint"):
        raise UserError(
            f"The adapters in {folder} were trained on other weights than those of {base!r}: make or download that "
            "model as it was."
        )
    return weights


def added_weights(backbone: LatentBackbone, base: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the base does not have, by the key in the file."""
    added = {}
    for key, value in backbone.published_state_dict().items():
        name = key.replace(".base_layer.", ".")
        if ".lora_" in key:
            added[FACTOR_PREFIX + key.replace(".default.", ".")] = value
        elif name not in base:
            added[name] = value
        elif len(value) > len(base[name]) and _same(value[: len(base[name])], base[name]):
            added[name + ADDED_ROWS] = value[len(base[name]) :]
        elif not _same(value, base[name]):
            added[name] = value
    return added


def _same(value: Tensor, base: Tensor) -> bool:
    return torch.equal(value.to(base.dtype), base)  # frozen layers may be held in bfloat16, where that loses nothing


def weights_of_base(model: PreTrainedModel) -> dict[str, Tensor]:
    """Weights of a causal LM by key, without those tied to another."""
    tied = tied_keys(model)
    return {key: value for key, value in model.state_dict().items() if key not in tied}
