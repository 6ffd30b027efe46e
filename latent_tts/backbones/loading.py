"""From a folder or a hub id to a backbone, with every weight accounted for."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from latent_tts.backbones.adapters import has_adapters, read_weights
from latent_tts.backbones.base import LatentBackbone
from latent_tts.backbones.causal_lm import load_causal_lm
from latent_tts.backbones.coconut import Coconut
from latent_tts.backbones.codi import Codi
from latent_tts.backbones.colar import Colar
from latent_tts.backbones.cot import Cot
from latent_tts.backbones.files import (
    commit_of,
    load_tokenizer,
    made_with_fused_activations,
    read_generation_config,
    read_json,
    resolve_folder,
)
from latent_tts.backbones.kinds import KINDS
from latent_tts.backbones.metadata import read_metadata
from latent_tts.backbones.weight_files import read_safetensors
from latent_tts.backbones.weights import check_weights, fill, tied_keys
from latent_tts.errors import UserError


def load_backbone(
    name_or_folder: str | Path,
    kind: str | None = None,
    num_latents: int | None = None,
    dtype: str = "float32",
    revision: str | None = None,
) -> LatentBackbone:
    """Loads a latent reasoning model in its published layout, or from adapters and their base (`latent_tts.backbones.adapters`).

    Args:
        name_or_folder: A folder, or a Hugging Face hub id (downloaded once, safetensors only).
        kind: ``coconut``, ``codi``, ``colar``, or ``cot`` for written reasoning; ``None`` reads it from the files, and takes a
            plain causal LM that does not say what it is for a COCONUT.
        num_latents: Overrides the number of latent thoughts (for CoLaR: the maximum).
        dtype: Type the weights are held in, ``float32`` or ``bfloat16``.
        revision: Commit, tag or branch of a hub id; ``None`` takes its newest. ``backbone.commit`` says which one it was.

    Returns:
        The backbone in evaluation mode, on the CPU.

    Raises:
        UserError: No such folder, hub id or revision; not a checkpoint of this kind; weights missing, unexpected, resized, not
            finite, or at odds with the config; or a model that would not be rolled out exactly (docs/models.md).
    """
    folder = resolve_folder(name_or_folder, revision)
    metadata, generation = read_metadata(folder), read_generation_config(folder)
    raw_config = read_json(folder / "config.json")
    weights = read_weights(folder)
    found = metadata.get("kind") or _kind_of(raw_config, weights) or (kind if kind == Cot.kind else Coconut.kind)
    cls = KINDS[_agreed_kind(kind, found, folder)]
    torch_dtype = _torch_dtype(dtype)
    model = made_with_fused_activations(
        folder, lambda config: AutoModelForCausalLM.from_config(config, dtype=torch_dtype)
    )
    if generation is not None:
        model.generation_config = generation
    places = model.state_dict() | _shapes_beside(cls, model)
    renamed = (
        None
        if has_adapters(folder) or cls.extra_modules(model.config)
        else _under_other_names(folder, weights, places.keys() - tied_keys(model).keys())
    )
    if renamed is None:
        check_weights(weights, places, tied_keys(model), str(folder), f"a {cls.kind} {model.config.model_type} model")
        fill(model.state_dict(), weights)  # before the model is wrapped, which looks at what it computes
    else:
        model = renamed
        torch.nn.Module.to(model, torch_dtype)  # in place; transformers' own wraps it for quantized models
    backbone = cls(
        model,
        load_tokenizer(folder),
        num_latents=metadata.get("num_latents") if num_latents is None else num_latents,
        prompt_form=metadata.get("prompt_form"),
    )
    fill(backbone.state_dict(), {key: weights[key] for key in _shapes_beside(cls, model)})
    backbone.commit = commit_of(folder)
    return backbone.eval()


def _under_other_names(folder: Path, weights: dict[str, Tensor], places: Set[str]) -> PreTrainedModel | None:
    """The causal LM of a folder whose weights have the names of another layout that transformers reads: experts one by one, or a
    model without its head's prefix. None where all of `places` are filled, or transformers does not read it either.
    """
    if weights.keys() >= places:
        return None
    try:
        return load_causal_lm(folder)
    except UserError:  # what is wrong is said of the names as they stand
        return None


def _shapes_beside(cls: type[LatentBackbone], model: PreTrainedModel) -> dict[str, Tensor]:
    """Weights without content, by key, of the modules that a kind keeps beside its causal LM."""
    with torch.device("meta"):
        modules = cls.extra_modules(model.config)
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


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
