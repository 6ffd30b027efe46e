"""From a model that was trained in full to adapters: what the training has added to every layer, in its best approximation.

python -m commands.extract_adapters runs/cot-135m/model --base runs/smollm2-135m --r 32 --out runs/cot-135m/adapters
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from commands.guard import main_guard
from commands.tools import ToolArguments, folder
from latent_tts.backbones.adapters import (
    ADDED_ROWS,
    DOWN,
    FACTOR_PREFIX,
    UP,
    added_weights,
    weights_of_base,
    whole_model,
    write_adapters,
)
from latent_tts.backbones.base import LatentBackbone
from latent_tts.backbones.causal_lm import load_causal_lm
from latent_tts.errors import UserError


def extract_adapters(
    backbone: LatentBackbone, base: str, r: int, folder: str | Path, dtype: torch.dtype | None = None
) -> float:
    """Writes a backbone that was trained in full as adapters: the best of rank r for what its training has added to each layer.

    By singular value decomposition (Eckart & Young 1936). The base's token embeddings stay as the base has them.

    Returns:
        The share of the squared norm of all added matrices that the adapters keep.

    Raises:
        UserError: The base cannot be read or has adapters itself, or a rank that some layer cannot have.
    """
    from peft import LoraConfig

    base_weights = weights_of_base(load_causal_lm(whole_model(base)))
    embeddings = (backbone.model.get_input_embeddings(), backbone.model.get_output_embeddings())
    modules = dict(backbone.model.named_modules())
    tables = {name for name, module in modules.items() if module in embeddings}
    layers = {
        name: isinstance(module, Conv1D)  # GPT-2's transposed layers
        for name, module in modules.items()
        if isinstance(module, (nn.Linear, Conv1D)) and name not in tables
    }
    smallest = min(min(modules[name].weight.shape) for name in layers)
    if not 1 <= r <= smallest:
        raise UserError(f"r must lie between 1 and {smallest}, the smallest side of this model's layers; got {r}.")
    added, kept, total = {}, 0.0, 0.0
    for key, value in added_weights(backbone, base_weights).items():
        name = key.removesuffix(".weight")
        if name in layers:
            difference = value.float() - base_weights[key]
            left, singular, right = torch.linalg.svd(difference.T if layers[name] else difference, full_matrices=False)
            kept, total = kept + float(singular[:r].square().sum()), total + float(singular.square().sum())
            root = singular[:r].sqrt()
            added[FACTOR_PREFIX + name + UP] = left[:, :r] * root
            added[FACTOR_PREFIX + name + DOWN] = root.unsqueeze(1) * right[:r]
        elif name in tables:
            if len(value) > len(base_weights[key]):
                added[key + ADDED_ROWS] = value[len(base_weights[key]) :]
        else:
            added[key] = value
    config = LoraConfig(r=r, lora_alpha=r, target_modules=sorted({name.split(".")[-1] for name in layers}))
    config.fan_in_fan_out = any(layers.values())
    write_adapters(folder, backbone, config.to_dict(), added, base, base_weights, dtype)
    return kept / max(total, 1e-30)


def main(args: Sequence[str] | None = None) -> None:
    from latent_tts.backbones.loading import load_backbone

    parser = ToolArguments(description="Extract adapters from a backbone that was trained in full.")
    parser.add_argument("model", help="Folder of the backbone.")
    parser.add_argument(
        "--base", required=True, help="Folder or hub id of the causal LM that its training started from."
    )
    parser.add_argument("--r", type=int, default=32, help="Rank of the adapters (default: %(default)s).")
    parser.add_argument("--out", type=folder, required=True, help="Folder to write.")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="Storage type.")
    options = parser.parse_args(args)
    kept = extract_adapters(
        load_backbone(options.model), options.base, options.r, options.out, getattr(torch, options.dtype)
    )
    print(f"wrote {options.out}: rank {options.r} keeps {kept:.0%} of the squared norm of what the training has added")


if __name__ == "__main__":
    sys.exit(main_guard(main))
