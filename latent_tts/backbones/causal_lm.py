"""The causal LM that a training starts from, as transformers reads it, with every weight of its files accounted for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from latent_tts.backbones.files import in_short, made_with_fused_activations, read_generation_config
from latent_tts.backbones.weight_files import tensors, weight_files
from latent_tts.backbones.weights import check_finite, check_tied, check_types, check_wrapped, listed, tied_keys
from latent_tts.errors import UserError


def load_causal_lm(folder: Path) -> PreTrainedModel:
    """The causal LM of a folder, in float32.

    Raises:
        UserError: It cannot be read, or weights are missing, without a place, quantized, not finite, or at odds with the config.
    """
    files, generation = weight_files(folder), read_generation_config(folder)
    info: dict[str, Any] = {}

    def make(config: Any) -> PreTrainedModel:
        with _silent_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
        model: PreTrainedModel = loaded[0]
        info.update(loaded[1])
        return model

    try:
        model = made_with_fused_activations(folder, make)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"The model to start from, {str(folder)!r}, cannot be loaded ({in_short(error)}): is the download complete?"
        ) from error
    if generation is not None:
        model.generation_config = generation
    _account_for(model, files, info, str(folder))
    return model


def _account_for(model: PreTrainedModel, files: list[Path], info: dict[str, Any], source: str) -> None:
    """Checks what transformers made of the files' weights; of those that it renames, no type is compared."""
    unexpected = sorted(str(key) for key in info["unexpected_keys"])
    check_wrapped(unexpected, source)
    places, tied = model.state_dict(), tied_keys(model)
    stored: dict[str, Tensor] = {}
    for file in files:
        stored |= tensors(file, {*places})
    check_types({key: value.dtype for key, value in stored.items()}, places, source)
    check_tied(stored, tied, source)
    lacking = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if lacking:
        raise UserError(f"The weights of {source!r} are incomplete: {listed(lacking)}.")
    if unexpected:
        raise UserError(
            f"{source!r} holds weights that a plain {model.config.model_type} model has no place for: {listed(unexpected)}; take "
            "them out of the file, or name a model without them."
        )
    check_finite(places, source)


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """What is wrong with weights is said here, in one sentence that stands alone: no progress bar, no report beside it."""
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
