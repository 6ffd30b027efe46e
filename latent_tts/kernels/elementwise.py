"""Activations in one pass over memory, see ``elementwise.cpp``."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from latent_tts.kernels import library


class GELU(nn.GELU):
    """0.5 x (1 + erf(x / sqrt(2))), or its tanh form 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))); any shape."""

    def forward(self, input: Tensor) -> Tensor:
        output = _by_kernel("tanh_gelu" if self.approximate == "tanh" else "erf_gelu", input)
        return super().forward(input) if output is None else output


class SiLU(nn.SiLU):
    """x / (1 + e^-x) of tensors of any shape."""

    def forward(self, input: Tensor) -> Tensor:
        output = _by_kernel("silu", input)
        return super().forward(input) if output is None else output


def _by_kernel(name: str, x: Tensor) -> Tensor | None:
    """A function of every value, within 1e-6 of torch's; None where torch has to compute it."""
    known = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and x.is_contiguous()
    kernels = library.kernels() if known and not torch.is_grad_enabled() else None
    if kernels is None:
        return None
    y = torch.empty_like(x)
    function = getattr(kernels.functions, f"{str(x.dtype).removeprefix('torch.')}_{name}")
    function(ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()), ctypes.c_int64(x.numel()))
    return y
