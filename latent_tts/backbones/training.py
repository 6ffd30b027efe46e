"""From a folder or a hub id to a backbone that is trained: any causal LM, or a checkpoint of the kind to go on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from latent_tts.attention.probe import check_training
from latent_tts.backbones.adapters import has_adapters
from latent_tts.backbones.base import LatentBackbone
from latent_tts.backbones.causal_lm import load_causal_lm
from latent_tts.backbones.files import commit_of, load_tokenizer, resolve_folder
from latent_tts.backbones.loading import load_backbone, published_kind
from latent_tts.backbones.metadata import read_metadata
from latent_tts.errors import UserError

Kind = TypeVar("Kind", bound=LatentBackbone)


def load_for_training(
    cls: type[Kind],
    name_or_folder: str | Path,
    num_latents: int | None = None,
    prompt_form: str | None = None,
    config: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Kind:
    """A causal LM as a backbone of the kind `cls`, in float32 and training mode.

    A plain causal LM gets the special tokens it lacks, and fresh modules (projector, latent head) beside it. A checkpoint of
    the same kind keeps its own modules, their config fields, its number of latents and its prompt form: training goes on
    from them.

    Args:
        cls: Kind of the backbone.
        name_or_folder: A folder, or a Hugging Face hub id.
        num_latents: Latent thoughts; by default those of the checkpoint or, for a plain causal LM, of the kind.
        prompt_form: Form of the prompt; by default as for `num_latents`.
        config: Config fields of the kind's fresh modules, such as `projector_hidden_size`.
        seed: Seed of the fresh modules' weights.

    Raises:
        UserError: There is no such model, its weights are incomplete, damaged or at odds with its config, it is a checkpoint of
            another kind, or one whose own modules have other fields than `config` says, or its family would not be trained
            exactly (docs/models.md).
    """
    folder = resolve_folder(name_or_folder)
    found = published_kind(folder)
    if cls.kind in (found, read_metadata(folder).get("kind")):
        backbone = load_backbone(folder, num_latents=num_latents)
        _check_own_parts(backbone, config or {}, folder)
        backbone.prompt_form = prompt_form or backbone.prompt_form
        check_training(backbone.model)
        return cast(Kind, backbone.train())
    if found is not None:
        raise UserError(
            f"{folder} holds a {found} checkpoint, from which no {cls.kind} can be trained: name a plain causal LM."
        )
    model = load_backbone(folder).model if has_adapters(folder) else load_causal_lm(folder)
    for field, value in (config or {}).items():
        setattr(model.config, field, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = cls.from_causal_lm(model, load_tokenizer(folder), num_latents, prompt_form=prompt_form)
    check_training(fresh.model)
    fresh.commit = commit_of(folder)
    return cast(Kind, fresh.train())


def _check_own_parts(backbone: LatentBackbone, config: Mapping[str, Any], folder: Path) -> None:
    """UserError where a field of fresh modules has another value than the checkpoint's own modules were made with."""
    own = backbone.extra_config()
    for field, value in config.items():
        if field in own and own[field] != value:
            raise UserError(
                f"{folder} is a {backbone.kind} checkpoint with modules of {field} {own[field]}, from which training goes on: "
                f"{field} {value} is for a plain causal LM, so leave it out."
            )
