"""The two ways in which a model attends; `latent_tts/attention/probe.py` finds out which one it is exact with.

shared   ours, for models that leave attention to transformers' interface and ask nothing special of it: the prompt's keys and
         values are read where they lie, by all rollouts
own      the model's, as its authors wrote it: windows, soft-caps, sinks and distances are its own business
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from latent_tts.acceleration.kernels import attention
from latent_tts.acceleration.layers import attention_by_products, products_train_faster

ATTENTION = "shared_prefix"


class SpecialAttentionError(Exception):
    """A model asks its attention for more than softmax(q k) v: the shared way can't give it."""


def share_attention(model: PreTrainedModel) -> None:
    """Makes a model's attention able to read a ``SharedPrefixCache``; without one it is plain SDPA, as before."""
    _set_attention(model, ATTENTION)


def keep_own_attention(model: PreTrainedModel) -> None:
    """Lets a model attend as its authors wrote it."""
    _set_attention(model, "eager")


def _set_attention(model: PreTrainedModel, name: str) -> None:
    # Some families choose their attention when they are made, and only warn when they are asked for another one.
    if model._can_set_attn_implementation():
        model.set_attn_implementation(name)


def shares_attention(model: PreTrainedModel) -> bool:
    """Whether a model attends in the shared way."""
    return bool(model.config._attn_implementation == ATTENTION)


def attention_with_shared_prefix(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    shared_prefix: Any = None,
    packed: Callable[..., tuple[Tensor, None]] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (R, H, Q, hd), key and value as the cache's ``update`` returned them.

    Raises:
        SpecialAttentionError: Scores are to be capped, or share their softmax with sinks.
    """
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise SpecialAttentionError
    if packed is not None:  # the training of reward models: see latent_tts/attention/packed.py
        return packed(module, query, key, value, **kwargs)
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    if shared_prefix is not None:
        return shared_prefix.attend(cast(int, module.layer_idx), query, scaling), None
    if _is_prompt_pass(module, query, key, value, attention_mask):
        return attention.attend_causally(query, key, value, scaling), None
    plain = attention_by_products if products_train_faster(query) else sdpa_attention_forward
    return plain(module, query, key, value, attention_mask, **kwargs)


def _is_prompt_pass(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None
) -> bool:
    """Whether this is attention of whole, right-padded prompts to themselves that the kernel can compute."""
    causal = attention_mask is None and query.shape[2] == key.shape[2] and getattr(module, "is_causal", True)
    return causal and key.shape == value.shape and attention.suits(query, key, value)


AttentionInterface.register(ATTENTION, attention_with_shared_prefix)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
