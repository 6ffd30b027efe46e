"""Activation checkpointing for passes that extend a cache: what the blocks compute is made again in the backward pass.

transformers' own drops the cache of keys and values, without which there are no thoughts. Here a block is a function of its
input and of the keys and values before it: it works on a copy of the cache, whose layers replace their tensors and never write to
them, so that making it again changes nothing. Kept are the input of every block and its keys and values.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

from latent_tts.errors import UserError


def checkpoint_blocks(model: nn.Module) -> None:
    """Lets every transformer block of a model be computed again in the backward pass; gradients are the same.

    Raises:
        UserError: It has no blocks that can be told.
    """
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        raise UserError("--checkpoint_activations finds no transformer blocks in this model: leave it out.")
    for block in blocks:
        block.forward = partial(_computed_again, block.forward)


def _computed_again(forward: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """What a block gives; a cache among its arguments is extended once, however often the block is computed."""
    if not torch.is_grad_enabled():
        return forward(*given, **named)
    cache = next((one for one in (*given, *named.values()) if isinstance(one, Cache)), None)
    if cache is None:
        return checkpoint(forward, *given, use_reentrant=False, **named)
    if not isinstance(cache, DynamicCache):  # one that is written to in place
        return forward(*given, **named)
    before, extended = list(cache.layers), list[list[Any]]()

    def compute(*given: Any, **named: Any) -> Any:
        other = copy(cache)
        other.layers = [copy(layer) for layer in before]
        named = {name: other if one is cache else one for name, one in named.items()}
        found = forward(*(other if one is cache else one for one in given), **named)
        extended.append(other.layers)
        return found

    found = checkpoint(compute, *given, use_reentrant=False, **named)
    cache.layers = extended[0]
    return found
