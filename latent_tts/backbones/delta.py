"""A trained backbone as one bit per weight beside the model it was trained from (BitDelta, arXiv 2402.10193).

    weights of a row  ~  those of the base + scale * sign(difference),    scale = mean |difference| over the row

That scale leaves the least squared error: 60 % of the distance for normally distributed changes, sqrt(1 - 2 / pi). The paper
finds that answers survive it; whether yours do is for an evaluation to say. 135M parameters take 18 MB in place of 269.

    python -m latent_tts.backbones.delta store runs/codi-135m/model --base runs/smollm2-135m --out checkpoints/codi-135m
    python -m latent_tts.backbones.delta restore checkpoints/codi-135m --base runs/smollm2-135m --out runs/codi-135m/model

Stored are, in `delta.safetensors`: of every matrix that the base has too, `KEY.signs` and `KEY.scale`, and `KEY.rows`, the rows
that the base lacks (new tokens); all else as it is (norms, projector, latent head). Other files are those of the trained folder.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from latent_tts.backbones.loading import DELTA_FILE, read_safetensors, resolve_folder
from latent_tts.cli import main_guard
from latent_tts.errors import UserError
from latent_tts.fingerprint import fingerprint

WEIGHTS_FILE = "model.safetensors"
_PARTS = ("signs", "scale", "rows")


def compress(trained: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `decompress` makes the trained weights of, up to the distance of every weight from its row's mean distance.

    Args:
        trained: Weights by name; a matrix may have more rows than its base, (M', N) for (M, N).
        base: Weights that the training started from.

    Returns:
        `KEY.signs` (M, ceil(N / 8)) uint8, `KEY.scale` (M,) float32 and `KEY.rows` (M' - M, N) of matrices; others by name.
    """
    delta: dict[str, Tensor] = {}
    for key, weight in trained.items():
        if weight.dim() != 2 or key not in base or weight.shape[1] != base[key].shape[1]:
            delta[key] = weight
            continue
        known = base[key].shape[0]
        change = weight[:known].float() - base[key].float()
        delta[f"{key}.signs"] = torch.from_numpy(np.packbits((change > 0).numpy(), axis=1))
        delta[f"{key}.scale"] = change.abs().mean(dim=1)
        if len(weight) > known:
            delta[f"{key}.rows"] = weight[known:].clone()
    return delta


def decompress(delta: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in float32 from what `compress` returned, and the same base."""
    weights = {key: value for key, value in delta.items() if key.rpartition(".")[2] not in _PARTS}
    for key in [name.removesuffix(".signs") for name in delta if name.endswith(".signs")]:
        bits = np.unpackbits(delta[f"{key}.signs"].numpy(), axis=1, count=base[key].shape[1])
        signs = torch.from_numpy(bits).float().mul_(2).sub_(1)
        known = base[key].float() + delta[f"{key}.scale"].unsqueeze(1) * signs
        new = delta.get(f"{key}.rows", known[:0])
        weights[key] = torch.cat([known, new.float()])
    return {key: value.float() for key, value in weights.items()}


def lost_share(trained: Mapping[str, Tensor], delta: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> float:
    """Distance of the restored from the trained weights, as a share of the distance of the base from them."""
    restored = decompress(delta, base)
    keys = [key for key in trained if f"{key}.signs" in delta]
    missed = sum(float((restored[key] - trained[key].float()).square().sum()) for key in keys)
    moved = sum(float((trained[key][: len(base[key])].float() - base[key].float()).square().sum()) for key in keys)
    return (missed / moved) ** 0.5 if moved else 0.0


def store(folder: Path, base: str, out: Path) -> None:
    """Write a trained backbone as its difference to the model it was trained from.

    Args:
        folder: The trained backbone, as an export wrote it.
        base: Folder or hub id of the model it was trained from.
        out: Folder to write.
    """
    trained, base_weights = read_safetensors(resolve_folder(folder)), read_safetensors(resolve_folder(base))
    delta = compress(trained, base_weights)
    if not any(key.endswith(".signs") for key in delta):
        raise UserError(f"No matrix of {folder} is one of {base}: name the model that it was trained from as --base.")
    _copy_files(folder, out)
    save_file(delta, out / DELTA_FILE, {"format": "pt", "base": fingerprint(base_weights)})
    size, lost = (out / DELTA_FILE).stat().st_size / 1e6, lost_share(trained, delta, base_weights)
    print(f"wrote {out}: {size:.1f} MB, {100 * lost:.0f} % of the distance to the base lost")


def restore(folder: Path, base: str, out: Path, dtype: Literal["float32", "bfloat16"] = "bfloat16") -> None:
    """Write the backbone that `store` made a difference of, as a folder that every command reads.

    Args:
        folder: What `store` wrote.
        base: Folder or hub id of the model it was trained from.
        out: Folder to write.
        dtype: Type of the written weights.
    """
    file, base_weights = folder / DELTA_FILE, read_safetensors(resolve_folder(base))
    if not file.is_file():
        raise UserError(f"{folder} holds no {DELTA_FILE}: name a folder that `delta store` wrote.")
    with safe_open(file, framework="pt") as handle:
        wanted = handle.metadata()["base"]
        delta = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a dict)
    if fingerprint(base_weights) != wanted:
        raise UserError(f"{folder} is the difference to another model than {base}: name the one in its README.md.")
    weights = {key: value.to(getattr(torch, dtype)) for key, value in decompress(delta, base_weights).items()}
    _copy_files(folder, out)
    save_file(weights, out / WEIGHTS_FILE, {"format": "pt"})
    print(f"wrote {out}: {sum(weight.numel() for weight in weights.values()):,} parameters, {dtype}")


def _copy_files(folder: Path, out: Path) -> None:
    """Everything beside the weights: config, tokenizer, metadata."""
    out.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.json"):
        shutil.copy(file, out / file.name)


def main() -> None:
    parser = argparse.ArgumentParser(description="A trained backbone as one bit per weight beside its base, and back.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in (("store", store), ("restore", restore)):
        command = commands.add_parser(name, help=cast(str, function.__doc__).splitlines()[0])
        command.add_argument(
            "folder", type=Path, help="What an export wrote." if name == "store" else "What `store` wrote."
        )
        command.add_argument("--base", required=True, help="Folder or hub id of the model that it was trained from.")
        command.add_argument("--out", type=Path, required=True, help="Folder to write.")
    command.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="Type of the weights.")
    options = vars(parser.parse_args())
    {"store": store, "restore": restore}[options.pop("command")](**options)


if __name__ == "__main__":
    sys.exit(main_guard(main))
