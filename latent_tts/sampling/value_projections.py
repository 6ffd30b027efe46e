"""Where a decoder makes its values: the layer, or the part of a fused one, that singular-value perturbation changes.

They are looked for by name in every block, and checked by what they are for: where all of them give 0, nothing may reach the
output projections of the attention layers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from latent_tts.attention.passes import decoder_pass
from latent_tts.attention.probe import once
from latent_tts.attention.probe_passes import RefusedError
from latent_tts.errors import UserError
from latent_tts.sampling.dropout_sites import attention_children, blocks, projections

_POSITIONS = 4
_TOLERANCE = 1e-6


class ValueProjection(NamedTuple):
    """The columns ``first`` and on of a linear layer's output, which are the values of an attention layer."""

    layer: Any  # nn.Linear | Conv1D
    first: int

    def matrix(self) -> Tensor:
        """The weights (D, W) of the columns, as in y = x W, wherever the layer keeps them."""
        weight: Tensor = self.layer.state_dict()["weight"]
        rows = weight if isinstance(self.layer, Conv1D) else weight.t()
        return rows[:, self.first :]


def find_value_projections(model: PreTrainedModel) -> list[ValueProjection]:
    """One a block, in their order: a linear ``v_proj`` (Llama and its like), or the last third of a fused ``c_attn`` (GPT-2).

    Raises:
        UserError: The model makes its values in another way.
    """
    attention = [_attention(block) for _, block in blocks(model)]
    found = [_of_attention(layer) for layer in attention]
    if not found or None in found:
        raise UserError(
            f"A model of type {model.config.model_type} has no value projections of its own (v_proj, or GPT-2's c_attn, without "
            "adapters) that singular values could be perturbed of; AdditiveGaussianNoise serves."
        )
    values = [one for one in found if one is not None]
    once("sampled by perturbed values", model, lambda: _checked(model, attention, values))
    return values


def _attention(block: nn.Module) -> nn.Module:
    return block.get_submodule(attention_children(block)[0])


def _of_attention(attention: nn.Module) -> ValueProjection | None:
    for name, layer in attention.named_modules():
        last = name.split(".")[-1]
        if last == "v_proj" and isinstance(layer, nn.Linear):
            return ValueProjection(layer, 0)
        if last == "c_attn" and isinstance(layer, Conv1D) and layer.nf == 3 * layer.nx:
            return ValueProjection(layer, 2 * layer.nx)
    return None


def _checked(model: PreTrainedModel, attention: list[nn.Module], values: list[ValueProjection]) -> None:
    table: Any = model.get_input_embeddings()
    embeds = table.weight.detach()[1 : 1 + _POSITIONS].unsqueeze(0)
    if embeds.is_meta:  # without values there is nothing to compare
        return
    seen: list[float] = []
    hooks = [one.layer.register_forward_hook(_silence(one.first)) for one in values]
    hooks += [_outputs(layer).register_forward_pre_hook(_note(seen)) for layer in attention]
    try:
        decoder_pass(model, embeds, torch.arange(embeds.shape[1], device=embeds.device).unsqueeze(0))
    finally:
        for hook in hooks:
            hook.remove()
    if not seen or max(seen) > _TOLERANCE:
        raise RefusedError(
            "attends to more than what its value projections give, which singular-value perturbation cannot change; "
            "AdditiveGaussianNoise serves"
        )


def _outputs(attention: nn.Module) -> nn.Module:
    """The output projection of an attention layer, the last of its linear layers."""
    return attention.get_submodule([name for name, _ in projections(attention)][-1])


def _silence(first: int) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return torch.cat([output[..., :first], torch.zeros_like(output[..., first:])], dim=-1)

    return hook


def _note(seen: list[float]) -> Any:
    def hook(_module: nn.Module, inputs: Any) -> None:
        seen.append(float(inputs[0].abs().max()))

    return hook
