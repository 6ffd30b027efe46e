"""Activations and norms in one pass over memory, see ``elementwise.cpp``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latent_tts.acceleration.kernels import library


class GELU(nn.GELU):
    """0.5 x (1 + erf(x / sqrt(2))), or its tanh form 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))); any shape."""

    def forward(self, input: Tensor) -> Tensor:
        output = _by_kernel("tanh_gelu" if self.approximate == "tanh" else "erf_gelu", input)
        return super().forward(input) if output is None else output


class TanhGELU(GELU):
    """The tanh form, as transformers' own classes of it have it without saying so in a field."""

    approximate = "tanh"


class SiLU(nn.SiLU):
    """x / (1 + e^-x) of tensors of any shape."""

    inplace = False  # which transformers' own class does not have as a field

    def forward(self, input: Tensor) -> Tensor:
        output = _by_kernel("silu", input)
        return super().forward(input) if output is None else output


class RMSNorm(nn.Module):
    """weight x / sqrt(mean(x^2) + epsilon) over the last axis, as Llama and its kin have it."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        x, width = hidden_states, hidden_states.shape[-1]
        kernels = _kernels(x)
        if kernels is None or x.dtype != self.weight.dtype or width % kernels.lanes:
            exact = x.float()
            scaled = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
            return self.weight * scaled.to(x.dtype)
        y = torch.empty_like(x)
        kernels.run("rms_norm", x.dtype, x, self.weight, y, x.numel() // width, width, self.variance_epsilon)
        return y

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}"


def _by_kernel(name: str, x: Tensor) -> Tensor | None:
    """A function of every value, within 1e-6 of torch's; None where torch has to compute it."""
    kernels = _kernels(x)
    if kernels is None:
        return None
    y = torch.empty_like(x)
    kernels.run(name, x.dtype, x, y, x.numel())
    return y


def _kernels(x: Tensor) -> library.Kernels | None:
    """The kernels, if they can read this tensor."""
    known = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and x.is_contiguous()
    return library.kernels() if known and not torch.is_grad_enabled() else None
