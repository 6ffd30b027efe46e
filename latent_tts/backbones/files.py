"""The files of a checkpoint: its folder here or on the hub, its configuration, tokenizer, weights and plain causal LM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from latent_tts.errors import UserError


def resolve_folder(name_or_folder: str | Path) -> Path:
    """The local folder of a checkpoint, downloading it where the name is a hub id.

    Raises:
        UserError: The folder is not a checkpoint, or the hub does not have (or cannot be asked for) the id.
    """
    folder = Path(name_or_folder)
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise UserError(
                f"{folder} holds no config.json: name the folder that holds config.json and model.safetensors."
            )
        return folder
    name = str(name_or_folder)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"There is no folder {name!r}: check the path, or give a hub id of the form owner/name.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except Exception as error:  # the hub client raises a dozen kinds, offline ones among them
        raise UserError(
            f"There is no folder {name!r} here, and the hub could not give {name!r} ({type(error).__name__}): "
            "check the name and the network, or download it first and pass the folder."
        ) from error


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder.

    Raises:
        UserError: The folder holds none.
    """
    from transformers import PreTrainedTokenizerFast

    folder = Path(folder)
    if (folder / "tokenizer.json").exists():
        # Read as it stands: the class named in tokenizer_config.json may rebuild the tokenizer with other rules.
        tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder)
        return tokenizer
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} holds no tokenizer: copy tokenizer.json and tokenizer_config.json into it."
        ) from error


def read_safetensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's ``*.safetensors`` files, by key.

    Raises:
        UserError: No such file, or one that is cut off or malformed.
    """
    files = sorted(folder.glob("*.safetensors"))
    files = [file for file in files if not file.name.startswith("expected")]
    if not files:
        raise UserError(
            f"{folder} holds no .safetensors file; other formats run code when they are loaded and are not read."
        )
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as handle:
                weights |= {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a dict)
        except Exception as error:
            raise UserError(f"{file} cannot be read as safetensors ({error}): is the download complete?") from error
    return weights


def load_causal_lm(folder: Path) -> PreTrainedModel:
    """The causal LM of a folder, in float32.

    Raises:
        UserError: It cannot be read, or weights are missing.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"The model to start from, {str(folder)!r}, cannot be loaded: {reason}") from error
    model: PreTrainedModel = loaded[0]
    info = loaded[1]
    lacking = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if lacking:
        raise UserError(f"The weights of {str(folder)!r} are incomplete: {', '.join(lacking)}.")
    return model


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: It cannot be read.
    """
    try:
        content: dict[str, Any] = json.loads(file.read_text())
        return content
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{file} cannot be read as JSON ({error}).") from error
