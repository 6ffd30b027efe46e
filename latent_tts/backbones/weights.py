"""Every weight of a file accounted for: in its place, of its shape, a finite number, and not at odds with the configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from latent_tts.errors import UserError

# Of DistributedDataParallel, torch.compile, peft, and the published code of COCONUT.
_WRAPPERS = ("module.", "_orig_mod.", "base_model.model.", "base_causallm.")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_SHOWN = 6  # keys in a list of weights


def check_weights(
    weights: Mapping[str, Tensor], places: Mapping[str, Tensor], tied: Mapping[str, str], source: str, what: str
) -> None:
    """Accounts for every key of stored weights.

    Args:
        weights: As stored, by key.
        places: Where they belong, by key; only shapes are read.
        tied: Keys of weights that are another one's, which may be missing: see `tied_keys`.
        source: File or folder, for the sentence.
        what: What the weights should be of, for the sentence.

    Raises:
        UserError: Keys are missing, unexpected, or of another shape; a weight is quantized or no finite number; or two weights
            are different that the configuration says are one.
    """
    missing = [key for key in places if key not in weights and key not in tied]
    unexpected = [key for key in weights if key not in places]
    resized = [
        f"{key} {tuple(weights[key].shape)} instead of {tuple(place.shape)}"
        for key, place in places.items()
        if key in weights and weights[key].shape != place.shape
    ]
    report_weights(source, what, missing, unexpected, resized)
    check_types({key: value.dtype for key, value in weights.items()}, places, source)
    check_tied(weights, tied, source)
    check_finite(weights, source)


def fill(places: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Copies weights into their places; those that belong elsewhere are passed over."""
    with torch.no_grad():
        for key, place in places.items():
            if key in weights:
                place.copy_(weights[key])


def report_weights(source: str, what: str, missing: list[str], unexpected: list[str], resized: list[str]) -> None:
    """Raises one error that names the weights that do not fit; returns where all do."""
    check_wrapped(unexpected, source)
    groups = [("missing", missing), ("unexpected", unexpected), ("resized", resized)]
    parts = [f"{name}: {listed(keys)}" for name, keys in groups if keys]
    if parts:
        raise UserError(f"The weights of {source} are not those of {what}; {'; '.join(parts)}.")


def listed(keys: Sequence[str]) -> str:
    """The first of some keys, and how many more there are."""
    return ", ".join(keys[:_SHOWN]) + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")


def check_wrapped(keys: Sequence[str], source: str) -> None:
    """Refuses weights that were saved from a model in a wrapper, whose name stands before every key.

    Raises:
        UserError: Names the wrapper's prefix and a way out.
    """
    for prefix in _WRAPPERS:
        wrapped = next((key for key in keys if key.startswith(prefix)), None)
        if wrapped is not None:
            raise UserError(
                f"The weights of {source} were saved from a wrapped model ({wrapped} begins with {prefix!r}): take "
                f"{prefix!r} off the keys, or save the model inside the wrapper."
            )


def check_types(types: Mapping[str, torch.dtype], places: Mapping[str, Tensor], source: str) -> None:
    """Refuses integers, and floats of a byte, where weights belong: they stand for weights by a scale that is kept elsewhere.

    Args:
        types: Of the weights as stored, by key.
        places: Where they belong, by key.
        source: File or folder, for the sentence.

    Raises:
        UserError: Names the first such weight.
    """
    for key, kind in types.items():
        if key in places and places[key].is_floating_point() and kind not in _FLOATS:
            raise UserError(
                f"{source} stores {key} as {str(kind).removeprefix('torch.')}: quantized weights are not read, so take the model "
                "in float32, float16 or bfloat16."
            )


def check_finite(weights: Mapping[str, Tensor], source: str) -> None:
    """Refuses weights that no model could have been trained to.

    Raises:
        UserError: Names the first tensor that is not finite.
    """
    for key, value in weights.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            count = int((~value.isfinite()).sum())
            raise UserError(
                f"The weights of {source} are damaged: {count} of {value.numel()} numbers in {key} are NaN or infinite; "
                "take an earlier checkpoint, or download it again."
            )


def tied_keys(model: PreTrainedModel) -> dict[str, str]:
    """Keys of weights that the configuration declares to be another weight, and that one's key."""
    return dict(getattr(model, "_tied_weights_keys", None) or {}) if model.config.tie_word_embeddings else {}


def check_tied(weights: Mapping[str, Tensor], tied: Mapping[str, str], source: str) -> None:
    """Refuses a weight of its own where the configuration says that it is another one: which of the two is meant is unknown.

    Raises:
        UserError: Names both, and the two ways out.
    """
    for key, other in tied.items():
        if key in weights and other in weights and not torch.equal(weights[key], weights[other]):
            raise UserError(
                f"{source} holds a {key} of its own, and its config says that it is {other} (tie_word_embeddings): set that "
                f"to false in config.json to use both, or take {key} out of the file."
            )
