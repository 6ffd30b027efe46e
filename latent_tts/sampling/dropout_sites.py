"""Where a decoder adds to its residual stream: the output projections of attention and feed-forward layers, in any family.

They are looked for in every block, and checked by what they are for: with all of them silenced, no block may change the hidden
states. So a layer that was overlooked, or that adds by another way (the experts of a mixture), is noticed and refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from latent_tts.attention.passes import decoder_pass
from latent_tts.attention.probe import once
from latent_tts.attention.probe_passes import RefusedError

_ATTENTION = re.compile(r"attn|attention")
_EXPERTS = re.compile(r"expert|router|moe", re.IGNORECASE)
_POSITIONS = 4
_TOLERANCE = 1e-3


_found: WeakKeyDictionary[PreTrainedModel, Sites] = WeakKeyDictionary()  # every pass asks


class Sites(NamedTuple):
    """Names, in the order in which a model has them, of one output projection a block each."""

    attention: tuple[str, ...]
    feed_forward: tuple[str, ...]


def find_sites(model: PreTrainedModel) -> Sites:
    """The output projections of a causal LM's sub-layers.

    Raises:
        UserError: They cannot be told apart, or are not all that its blocks add to the residual stream.
    """
    if model not in _found:
        _found[model] = once("sampled by MC-dropout", model, lambda: _checked(model, _find(model)))
    return _found[model]


def _find(model: PreTrainedModel) -> Sites:
    found = [_of_block(name, block, _width(model)) for name, block in blocks(model)]
    if not found:
        raise RefusedError(
            "has no blocks of attention and feed-forward layers for MC-dropout; AdditiveGaussianNoise serves"
        )
    return Sites(*map(tuple, zip(*found, strict=True)))


def _width(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().hidden_size)


def blocks(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """The blocks of the first list of modules that attend, by name."""
    for name, parts in model.named_modules():
        if isinstance(parts, nn.ModuleList) and len(parts) and attention_children(parts[0]):
            yield from ((f"{name}.{number}", block) for number, block in enumerate(parts))
            return


def attention_children(block: nn.Module) -> list[str]:
    """Names of a block's attention layers."""
    return [name for name, child in block.named_children() if _ATTENTION.search(name) and any(projections(child))]


def _of_block(name: str, block: nn.Module, width: int) -> tuple[str, str]:
    """The output projections of attention and of the feed-forward layer of one block: the last of their kind."""
    attention = attention_children(block)
    if any(_EXPERTS.search(part) or _EXPERTS.search(type(module).__name__) for part, module in block.named_modules()):
        raise RefusedError(
            "is a mixture of experts, in which MC-dropout has no one projection to mask; AdditiveGaussianNoise serves"
        )
    outputs = [part for part, size in projections(block) if size == width]
    inside = [part for part in outputs if attention and part.split(".")[0] == attention[0]]
    outside = [part for part in outputs if part not in inside]
    if len(attention) != 1 or not inside or not outside:
        raise RefusedError("has blocks whose sub-layers MC-dropout cannot tell apart; AdditiveGaussianNoise serves")
    return f"{name}.{inside[-1]}", f"{name}.{outside[-1]}"


def projections(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Linear layers by name, with the number of their outputs; one with an adapter is one layer."""
    within = "\n"
    for name, part in module.named_modules():
        layer: Any = getattr(part, "base_layer", part)
        if name.startswith(within) or not isinstance(layer, nn.Linear | Conv1D):
            continue
        within = f"{name}."
        yield name, layer.nf if isinstance(layer, Conv1D) else layer.out_features


def _checked(model: PreTrainedModel, sites: Sites) -> Sites:
    table: Any = model.get_input_embeddings()
    embeds = table.weight.detach()[1 : 1 + _POSITIONS].unsqueeze(0)
    if embeds.is_meta:  # without values there is nothing to compare
        return sites
    modules = [model.get_submodule(name) for name in (*sites.attention, *sites.feed_forward)]
    hooks = [module.register_forward_hook(_silence) for module in modules]
    try:
        positions = torch.arange(embeds.shape[1], device=embeds.device).unsqueeze(0)
        states = decoder_pass(model, embeds, positions, output_hidden_states=True).hidden_states[
            :-1
        ]  # the last is normed
    finally:
        for hook in hooks:
            hook.remove()
    if any(float((after - states[0]).norm()) > _TOLERANCE * float(states[0].norm()) for after in states[1:]):
        raise RefusedError(
            "adds to its hidden states at other places than MC-dropout masks; AdditiveGaussianNoise serves"
        )
    return sites


def _silence(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return torch.zeros_like(output)
