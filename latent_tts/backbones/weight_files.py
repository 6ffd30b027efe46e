"""Which files of a folder hold a model's weights, and the tensors in them: none is read twice, and none passed over unseen."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from latent_tts.backbones.files import read_json
from latent_tts.errors import UserError

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
# Of other programs (Mistral's), of another precision by transformers' naming, of reference outputs.
_OTHERS = re.compile(r"consolidated.*|model\.[^.]+\.safetensors|expected.*")


def read_safetensors(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder by key.

    Raises:
        UserError: As `weight_files` and `tensors` say; or a key stands in two files.
    """
    weights: dict[str, Tensor] = {}
    for file in weight_files(folder):
        for key, value in tensors(file).items():
            if key in weights:
                raise UserError(
                    f"{folder} holds {key} in two files, {file.name} among them: which is meant is unknown, so move one away."
                )
            weights[key] = value
    return weights


def tensors(file: Path, keys: set[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a file, or those of some keys, as far as they are there.

    Raises:
        UserError: The file is cut off or malformed.
    """
    try:
        with safe_open(file, framework="pt") as handle:
            return {key: handle.get_tensor(key) for key in handle.keys() if keys is None or key in keys}  # noqa: SIM118 (no dict)
    except Exception as error:  # the library raises a kind of its own, and whatever the system does
        raise UserError(f"{file} cannot be read as safetensors ({error}): is the download complete?") from error


def weight_files(folder: Path) -> list[Path]:
    """The files that make up a folder's weights: `model.safetensors`, or the shards that an index names, or all there are.

    Raises:
        UserError: There is none; one that the index names is missing or lies elsewhere; or there are others beside, so that which
            are meant is unknown.
    """
    shards = named_shards(folder)
    found = sorted(file.name for file in folder.glob("*.safetensors") if not _OTHERS.fullmatch(file.name))
    if not found:
        raise UserError(
            f"{folder} holds no .safetensors file; other formats run code when they are loaded and are not read."
        )
    if missing := [name for name in shards if name not in found and _WHOLE not in found]:
        raise UserError(f"{folder} lacks {missing[0]}, which {_INDEX} names: is the download complete?")
    meant = [_WHOLE] if _WHOLE in found else shards or found
    if beside := [name for name in found if name not in meant]:
        raise UserError(
            f"{folder} holds weights in {meant[0]} and in {beside[0]}: which are meant is unknown, so move one of them away."
        )
    return [folder / name for name in meant]


def named_shards(folder: Path) -> list[str]:
    """The names of the shards that an index lists; none where there is no index.

    Raises:
        UserError: An index cannot be read, or names anything but files beside it: transformers would read them wherever they are.
    """
    names: set[str] = set()
    for file in sorted(folder.glob("*.safetensors.index.json")):
        named = read_json(file).get("weight_map")
        for name in named.values() if isinstance(named, dict) and named else [named]:
            if not isinstance(name, str) or re.fullmatch(r"[\w-][\w.-]*\.safetensors", name) is None:
                raise UserError(
                    f"{file} names {str(name)[:80]!r} as a shard, which is no .safetensors file beside it: download the "
                    "checkpoint again from a source that you trust."
                )
            names.add(name)
    return sorted(names)
