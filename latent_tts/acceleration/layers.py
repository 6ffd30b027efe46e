"""Layers of a Hugging Face model in the form that the CPU's matrix units like: the same formulas, other memory layouts.

A model gets them by `freeze` (`latent_tts/acceleration/freezing.py`) and loses them again when it is trained or leaves the CPU.
What is measured to pay, and nothing else:

    everywhere           products, activations, norms (and attention, in ``latent_tts/attention``) by the C++ of ``kernels/``,
                         with weights packed for it

and where there is no compiler for it, or it can't be used:

    activations          one of torch's kernels in place of seven element-wise operations
    bfloat16, few rows   y = (W x^T)^T with W as rows of outputs, so that the big matrix is read as it lies; asked the other
                         way round, the library repacks all of it in every call
    float32, GPT-2       weight rows that start a multiple of 4 KiB apart fall into the same cache sets: they are spread

Training has the layers as transformers made them. Only its attention in bfloat16 on a CPU is two batched products: the fused
kernel's backward pass takes three times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import GELUTanh, NewGELUActivation, SiLUActivation
from transformers.pytorch_utils import Conv1D

from latent_tts.acceleration.kernels import products
from latent_tts.acceleration.kernels.elementwise import GELU, RMSNorm, SiLU, TanhGELU

_RMS_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")  # all of one formula
_FEW_ROWS = 192  # up to here repacking the weights costs more than transposing the result
_PAGE = 4096  # bytes
_SPREAD = 32  # elements between the rows of spread weights


@cache
def has_bfloat16_units() -> bool:
    """Whether this machine's CPU multiplies bfloat16 matrices in hardware units of their own (AMX)."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


class PackedWeights(nn.Module):
    """A linear layer whose weights are held in the order in which the kernels read them, while it is used without gradients.

    Only layers of a frozen model are. Packed, ``weight`` is flat; what asks for it by another way than
    the forward pass (a state dict, another device, a training) gets it as it was.
    """

    weight: Any  # nn.Parameter
    bias: Any  # nn.Parameter | None
    may_pack = False
    packed = False

    def matrix_shape(self) -> tuple[int, int]:
        """Inputs and outputs, (K, N)."""
        raise NotImplementedError

    def as_matrix(self, weight: Tensor) -> Tensor:
        """Weights in the layer's shape to (K, N), and back."""
        return weight

    def by_kernel(self, x: Tensor) -> Tensor | None:
        """The layer's output (..., N); None where the kernels can't give it, and then the weights are as they were."""
        inputs, outputs = self.matrix_shape()
        fixed = self.may_pack and not self.weight.requires_grad and x.dtype == self.weight.dtype
        if not (fixed and products.suits(x, inputs)):
            self.unpack()
            return None
        if not self.packed:
            self._replace(lambda weight: products.pack(self.as_matrix(weight)))
        return products.product(x, self.weight, self.bias, outputs)

    def unpack(self) -> None:
        """Puts the weights back into the layer's own layout."""
        if self.packed:
            self._replace(lambda panels: self.as_matrix(products.unpack(panels, *self.matrix_shape())).contiguous())

    def _replace(self, arrange: Callable[[Tensor], Tensor]) -> None:
        rearrange_weight(self, arrange)
        self.packed = not self.packed

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.unpack()
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _save_to_state_dict(self, *args: Any) -> None:
        self.unpack()
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, *args: Any) -> None:
        self.unpack()
        super()._load_from_state_dict(*args)


class FastLinear(PackedWeights, nn.Linear):
    """``nn.Linear`` that goes by the kernels, or transposes the product where that is faster."""

    def matrix_shape(self) -> tuple[int, int]:
        return self.in_features, self.out_features

    def as_matrix(self, weight: Tensor) -> Tensor:
        return weight.t()

    def forward(self, input: Tensor) -> Tensor:
        output = self.by_kernel(input)
        if output is not None:
            return output
        if _transpose(input, self.weight):
            return _transposed_product(input, self.weight, self.bias)
        return super().forward(input)


class FastConv1D(PackedWeights, Conv1D):
    """transformers' linear layer of GPT-2, with weights (inputs, outputs), by the kernels or in the layout that suits the pass.

    Only weights that need no gradient are laid out anew: an optimizer may count on the layout it has met.
    """

    def matrix_shape(self) -> tuple[int, int]:
        return self.nx, self.nf

    def forward(self, x: Tensor) -> Tensor:
        output = self.by_kernel(x)
        if output is not None:
            return output
        if torch.is_grad_enabled() or x.device.type != "cpu" or self.weight.requires_grad:
            return self.by_torch(x)
        if self.weight.dtype == torch.bfloat16 and has_bfloat16_units():
            if not self.weight.t().is_contiguous():
                rearrange_weight(self, lambda weight: weight.t().contiguous().t())  # rows of outputs
            if _transpose(x, self.weight):
                return _transposed_product(x, self.weight.t(), self.bias)
        elif self.weight.is_contiguous() and self.nf * self.weight.element_size() % _PAGE == 0:
            rearrange_weight(self, _spread)
        return self.by_torch(x)

    def by_torch(self, x: Tensor) -> Tensor:
        output: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return output


_FAST: dict[type, type] = {
    nn.Linear: FastLinear,
    Conv1D: FastConv1D,
    NewGELUActivation: TanhGELU,
    GELUTanh: TanhGELU,
    nn.GELU: GELU,
    SiLUActivation: SiLU,
    nn.SiLU: SiLU,
}


def use_fast_layers(model: nn.Module) -> None:
    """Gives a model's activations, norms and linear layers their faster form; names, weights and formulas stay.

    The class changes in place, so that hooks, ties and adapters that hold the layer keep holding it.
    """
    for module in model.modules():
        fast = RMSNorm if type(module).__name__ in _RMS_NORMS else _FAST.get(type(module))
        if fast is not None:
            module._plain_class = type(module)  # type: ignore[assignment]
            module.__class__ = fast


def use_plain_layers(model: nn.Module) -> None:
    """Undoes `use_fast_layers`: every layer has its own class again, and its weights their own layout."""
    for module in model.modules():
        plain = vars(module).pop("_plain_class", None)
        if plain is not None:
            if isinstance(module, PackedWeights):
                module.may_pack = False
                module.unpack()
                rearrange_weight(module, Tensor.contiguous)
            module.__class__ = plain


def allow_packing(model: nn.Module, but: nn.Module | None = None) -> None:
    """Lets the linear layers of a model be packed, whose weights will not change any more, all but one."""
    for module in model.modules():
        if isinstance(module, PackedWeights) and module is not but:
            module.may_pack = True


def rearrange_weight(layer: nn.Module, arrange: Callable[[Tensor], Tensor]) -> None:
    """Gives a layer's weights another memory layout, in the same parameter."""
    with torch.inference_mode(False), torch.no_grad():  # or these weights could never be trained again
        layer.weight.data = arrange(layer.weight.data)  # type: ignore[arg-type]


def products_train_faster(query: Tensor) -> bool:
    """Whether `attention_by_products` is the faster one: on the CPU, in bfloat16, with gradients."""
    if query.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    return (torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype) == torch.bfloat16


def attention_by_products(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as written in the books, in transformers' interface: query (B, H, Q, hd), key and value (B, H', K, hd).

    Args:
        attention_mask: (B | 1, 1, Q, K), true where a query may look; None lets the i-th last query see all but the i last keys.

    Returns:
        (B, Q, H, hd).
    """
    batch, heads, length, width = query.shape
    kv_heads, keys = key.shape[1:3]
    # Query heads that share a key head (grouped-query attention) become further query positions of that head.
    shape = (batch, kv_heads, heads // kv_heads, length)
    if attention_mask is None:
        attention_mask = torch.ones(length, keys, dtype=torch.bool, device=query.device).tril(keys - length)[None, None]
    hidden = ~attention_mask.unsqueeze(2)  # (B | 1, 1, 1, Q, K)
    scores = query.reshape(batch, kv_heads, -1, width) @ key.transpose(-1, -2)
    scores = (
        (scores.float() * (scaling or width**-0.5))
        .view(*shape, keys)
        .masked_fill(hidden, torch.finfo(torch.float32).min)
    )
    weights = nn.functional.dropout(scores.softmax(dim=-1), dropout, training=module.training).to(value.dtype)
    out = weights.view(batch, kv_heads, -1, keys) @ value  # (B, H', H / H' * Q, hd)
    return out.view(batch, heads, length, width).transpose(1, 2), None


def _transpose(x: Tensor, weight: Tensor) -> bool:
    rows = x.numel() // x.shape[-1]
    on_units = x.device.type == "cpu" and x.dtype == weight.dtype == torch.bfloat16 and has_bfloat16_units()
    return on_units and rows <= _FEW_ROWS and not torch.is_grad_enabled()


def _transposed_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., K) times weight (N, K), plus bias (N,): (..., N)."""
    columns = x.reshape(-1, x.shape[-1]).t()  # (K, R)
    product = weight @ columns if bias is None else torch.addmm(bias.unsqueeze(1), weight, columns)  # (N, R)
    return product.t().contiguous().view(*x.shape[:-1], -1)


def _spread(weight: Tensor) -> Tensor:
    """The same matrix in rows that are no multiple of a page apart."""
    wider = weight.new_empty(weight.shape[0], weight.shape[1] + _SPREAD)
    return wider[:, : weight.shape[1]].copy_(weight)
