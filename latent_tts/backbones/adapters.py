"""A backbone as what it adds to a base model: low-rank factors, and the weights and rows that the base does not have.

The folder has the published layout, but for its weights: ``adapter_model.safetensors`` and ``adapter_config.json`` in the layout
of peft, which name the base. Beside the factors the weights' file holds, under the backbone's own keys, every other weight that
is not the base's, and under ``<key>.added_rows`` what was put behind a table of the base (the embeddings of the thought tokens).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from latent_tts.backbones.base import METADATA_FILE, LatentBackbone
from latent_tts.backbones.files import load_causal_lm, read_json, read_safetensors, resolve_folder
from latent_tts.errors import UserError
from latent_tts.fingerprint import fingerprint

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
    from safetensors.torch import save_file

    configs = getattr(backbone.model, "peft_config", None)
    if not configs:
        raise UserError("This backbone was trained in full, without adapters: export the whole of it.")
    folder, base_folder = Path(folder), resolve_folder(base)
    if has_adapters(base_folder):
        raise UserError(f"{base} is itself stored as adapters, on which no others can be put: export the whole model.")
    base_weights = _weights_of_base(load_causal_lm(base_folder))
    added = {key: value if dtype is None else value.to(dtype) for key, value in _added(backbone, base_weights).items()}
    backbone.save_layout(folder, dtype)
    save_file(
        {key: value.contiguous().cpu() for key, value in added.items()}, folder / ADAPTER_WEIGHTS, {"format": "pt"}
    )
    (config,) = configs.values()
    described = {key: sorted(v) if isinstance(v, set) else v for key, v in config.to_dict().items()}
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
    weights = _weights_of_base(_base_of(folder, config["base_model_name_or_path"]))
    if fingerprint(weights) != read_json(folder / METADATA_FILE).get("base_fingerprint"):
        raise UserError(
            f"The adapters in {folder} were trained on other weights than those of {config['base_model_name_or_path']!r}: "
            "make or download that model as it was."
        )
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


def _base_of(folder: Path, base: str) -> PreTrainedModel:
    try:
        return load_causal_lm(resolve_folder(base))
    except UserError as error:
        raise UserError(f"The adapters in {folder} need the model that they were trained on. {error}") from error


def _added(backbone: LatentBackbone, base: dict[str, Tensor]) -> dict[str, Tensor]:
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


def _weights_of_base(model: PreTrainedModel) -> dict[str, Tensor]:
    """Weights of a causal LM by key, without those tied to another."""
    tied = (getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else ()
    return {key: value for key, value in model.state_dict().items() if key not in tied}
