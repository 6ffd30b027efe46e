"""From a folder or a hub id to a backbone, with every weight accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from latent_tts.backbones.adapters import read_weights
from latent_tts.backbones.base import METADATA_FILE, LatentBackbone
from latent_tts.backbones.coconut import Coconut
from latent_tts.backbones.codi import Codi
from latent_tts.backbones.colar import Colar
from latent_tts.backbones.cot import Cot
from latent_tts.backbones.files import load_tokenizer, read_json, read_safetensors, resolve_folder
from latent_tts.backbones.kinds import KINDS
from latent_tts.errors import UserError


def load_backbone(
    name_or_folder: str | Path, kind: str | None = None, num_latents: int | None = None, dtype: str = "float32"
) -> LatentBackbone:
    """Loads a latent reasoning model in its published layout, or from adapters and their base (`latent_tts.backbones.adapters`).

    Args:
        name_or_folder: A folder, or a Hugging Face hub id (downloaded once, safetensors only).
        kind: ``coconut``, ``codi``, ``colar``, or ``cot`` for written reasoning; ``None`` reads it from the files, and takes a
            plain causal LM that does not say what it is for a COCONUT.
        num_latents: Overrides the number of latent thoughts (for CoLaR: the maximum).
        dtype: Type the weights are held in, ``float32`` or ``bfloat16``.

    Returns:
        The backbone in evaluation mode, on the CPU.

    Raises:
        UserError: No such folder or hub id, not a checkpoint of this kind, or weights missing, unexpected or resized.
    """
    folder = resolve_folder(name_or_folder)
    metadata = read_json(folder / METADATA_FILE) if (folder / METADATA_FILE).exists() else {}
    raw_config = read_json(folder / "config.json")
    weights = read_weights(folder)
    found = metadata.get("kind") or _kind_of(raw_config, weights) or (kind if kind == Cot.kind else Coconut.kind)
    cls = KINDS[_agreed_kind(kind, found, folder)]
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=_torch_dtype(dtype))
    backbone = cls(
        model,
        load_tokenizer(folder),
        num_latents=metadata.get("num_latents") if num_latents is None else num_latents,
        prompt_form=metadata.get("prompt_form"),
    )
    load_strictly(backbone, weights, str(folder))
    return backbone.eval()


def load_strictly(module: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Copies published weights into a backbone and accounts for every key.

    Raises:
        UserError: Lists all keys that are missing, unexpected, or of another shape.
    """
    assert isinstance(module, LatentBackbone)
    targets = _targets(module)
    optional = _tied_keys(module)
    missing = [key for key in targets if key not in weights and key not in optional]
    unexpected = [key for key in weights if key not in targets]
    resized = [
        f"{key} {tuple(weights[key].shape)} instead of {tuple(targets[key].shape)}"
        for key in targets
        if key in weights and weights[key].shape != targets[key].shape
    ]
    report_weights(source, f"a {module.kind} {module.model.config.model_type} model", missing, unexpected, resized)
    with torch.no_grad():
        for key, value in weights.items():
            targets[key].copy_(value)


def report_weights(source: str, what: str, missing: list[str], unexpected: list[str], resized: list[str]) -> None:
    """Raises one error that lists every weight that does not fit; returns where all do."""
    groups = [("missing", missing), ("unexpected", unexpected), ("resized", resized)]
    parts = [f"{name}: {', '.join(keys)}" for name, keys in groups if keys]
    if parts:
        raise UserError(f"The weights of {source} are not those of {what}; {'; '.join(parts)}.")


def _targets(backbone: LatentBackbone) -> dict[str, Tensor]:
    state = dict(backbone.model.state_dict())
    for prefix in backbone.extra_modules(backbone.model.config):
        state |= {f"{prefix}.{key}": value for key, value in getattr(backbone, prefix).state_dict().items()}
    return state


def _tied_keys(backbone: LatentBackbone) -> set[str]:
    if not backbone.model.config.tie_word_embeddings:
        return set()
    return set(getattr(backbone.model, "_tied_weights_keys", None) or ())


def published_kind(folder: Path) -> str | None:
    """The kind whose own modules and config fields a checkpoint folder has; None for a plain causal LM, COCONUT among them.

    Raises:
        UserError: The folder's files cannot be read.
    """
    return _kind_of(
        read_json(folder / "config.json"), read_safetensors(folder)
    )  # adapters keep own modules under their keys


def _kind_of(config: dict[str, Any], weights: dict[str, Tensor]) -> str | None:
    if any(key.startswith("lt_head.") for key in weights) or "latent_embedding_std" in config:
        return Colar.kind
    if any(key.startswith("projector.") for key in weights) or "projector" in config:
        return Codi.kind
    return None


def _agreed_kind(asked: str | None, found: str, folder: Path) -> str:
    if asked is not None and asked not in KINDS:
        raise UserError(f"kind must be one of {', '.join(KINDS)}, got {asked!r}.")
    if asked is not None and asked != found:
        raise UserError(
            f"{folder} holds a {found} checkpoint, not {asked}: drop kind={asked!r} or name another folder."
        )
    if found not in KINDS:
        raise UserError(f"{folder} says it is of kind {found!r}; known are {', '.join(KINDS)}.")
    return found


def _torch_dtype(name: str) -> torch.dtype:
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
    if name not in dtypes:
        raise UserError(f"dtype must be one of {', '.join(dtypes)}, got {name!r}.")
    return dtypes[name]
