"""One pass of a decoder over embeddings: the one way in which every part of the project runs a transformers model."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from latent_tts.attention.shared_prefix import SharedPrefixCache


def decoder_pass(
    model: PreTrainedModel,
    inputs_embeds: Tensor,
    position_ids: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> Any:
    """Runs a model without its vocabulary projection.

    Args:
        model: A causal LM, or its base model.
        inputs_embeds: (B, L, D).
        position_ids: (B, L), counted from each row's first real token.
        attention_mask: (B, past + L) with 1 at real positions, a ready 4-D mask, taken as it is, or None where causal attention
            hides all that has to be hidden. A ``SharedPrefixCache`` knows by itself who sees whom.
        past_key_values: A transformers ``Cache``, extended in place.

    Returns:
        transformers' output of a base model: ``last_hidden_state`` is (B, L, D), after the final norm.
    """
    base: Any = model.base_model
    arguments = {"attention_mask": attention_mask, "past_key_values": past_key_values, **kwargs}
    if isinstance(past_key_values, SharedPrefixCache):
        arguments |= past_key_values.pass_arguments()
    if _takes_positions(base.__class__):
        arguments["position_ids"] = position_ids
    return base(inputs_embeds=inputs_embeds, use_cache=past_key_values is not None, **arguments)


@cache
def _takes_positions(base: Any) -> bool:
    """Whether a model is told its positions; others count them from the attention mask."""
    parameters = inspect.signature(base.forward).parameters
    return "position_ids" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
