"""Low-rank adapters (LoRA, arXiv 2106.09685) on a backbone's causal LM: put in for training, merged for everything else."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers.pytorch_utils import Conv1D

from latent_tts.backbones.adapters import load_adapters
from latent_tts.backbones.base import LatentBackbone
from latent_tts.errors import UserError

Backbone = TypeVar("Backbone", bound=LatentBackbone)


@dataclass(frozen=True)
class LoRA:
    """Adapters in place of full training. What a kind keeps beside the causal LM (projector, latent head) is always trained."""

    r: int = 128
    """Rank of the adapters."""
    alpha: float = 32
    """Their weight: the product of the two factors is multiplied by alpha / r."""
    dropout: float = 0.1
    """Dropout on what goes into an adapter, in training."""
    target_modules: list[str] | None = None
    """Names of the layers that get an adapter; none takes every linear layer of the blocks, whatever the architecture."""
    train_embeddings: bool = False
    """Whether the token embeddings and the vocabulary projection are trained too, in full."""
    adapters: str | None = None
    """Folder of stored adapters of the same rank and base to go on from; none starts with adapters that change nothing."""

    def __post_init__(self) -> None:
        if self.r < 1 or not 0.0 <= self.dropout < 1.0:
            raise UserError(
                f"LoRA needs r of 1 or more and dropout in [0, 1), got r {self.r} and dropout {self.dropout}."
            )


def add_lora(backbone: LatentBackbone, lora: LoRA, seed: int = 0) -> None:
    """Puts adapters into the causal LM and freezes what is not to be trained; the outputs are unchanged at first.

    Raises:
        UserError: No layer is named as `target_modules` says, or the stored adapters are of another shape or base.
    """
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # declared int, used as a number
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules or "all-linear",
        fan_in_fan_out=any(
            isinstance(module, Conv1D) for module in backbone.model.modules()
        ),  # GPT-2's transposed layers
    )
    backbone.requires_grad_(True)  # a frozen one first gets back the layers that can be trained
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, backbone.model)
        except ValueError as error:
            raise UserError(f"No adapter fits this {backbone.model.config.model_type} model: {error}") from error
    if lora.adapters is not None:
        load_adapters(backbone, Path(lora.adapters))
    if lora.train_embeddings:
        for table in (backbone.model.get_input_embeddings(), backbone.model.get_output_embeddings()):
            table.requires_grad_(True)


def hold_frozen_layers_in_bfloat16(backbone: LatentBackbone) -> None:
    """Spares bfloat16 autocast a cast of the frozen linear layers in every pass, and half of their memory.

    Only weights that are bfloat16 numbers already, as most published ones are: then nothing is rounded, neither in training
    nor in what is exported. Embeddings and norms stay as they are, and with them the residual stream.
    """
    for module in backbone.modules():
        if isinstance(module, BaseTunerLayer):
            for weight in module.get_base_layer().parameters():
                if torch.equal(weight.bfloat16().float(), weight):
                    weight.data = weight.data.bfloat16()


def merged(backbone: Backbone) -> Backbone:
    """A copy without adapters and with the same outputs; the backbone itself where it has none."""
    if not any(isinstance(module, BaseTunerLayer) for module in backbone.modules()):
        return backbone
    plain = deepcopy(backbone)
    for name, module in list(plain.named_modules()):
        if isinstance(module, BaseTunerLayer):
            layer = module.get_base_layer()
            layer.to(backbone.dtype)  # held in bfloat16, it would round the sum
            module.merge()
            plain.set_submodule(name, layer)
    return plain
