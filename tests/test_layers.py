"""The layouts that the CPU likes change no result and no weight."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from latent_tts import layers
from latent_tts.layers import FastConv1D, FastLinear


@pytest.fixture(autouse=True)
def with_units(monkeypatch):
    monkeypatch.setattr(layers, "has_bfloat16_units", lambda: True)


def pair(kind: type, outputs: int, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """A layer as it was, and its fast form, with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = Conv1D(outputs, 48) if kind is FastConv1D else nn.Linear(48, outputs)
    plain = plain.to(dtype).requires_grad_(False)
    fast = copy.deepcopy(plain)
    fast.__class__ = kind
    return plain, fast


@pytest.mark.parametrize("kind", [FastConv1D, FastLinear])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 192, 200])
@pytest.mark.parametrize("outputs", [40, 1024])  # rows of 1024 float32 are a page apart
def test_fast_layers_compute_what_the_plain_ones_do(kind, dtype, rows, outputs):
    plain, fast = pair(kind, outputs, dtype)
    x = torch.randn(rows, 1, 48, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), plain(x))
        assert fast(x).is_contiguous()
    for name, weight in plain.state_dict().items():
        assert torch.equal(fast.state_dict()[name], weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_in_training_keep_their_layout_and_laid_out_ones_can_be_trained(dtype):
    _, fast = pair(FastConv1D, 1024, dtype)
    x = torch.randn(3, 48, generator=torch.Generator().manual_seed(1)).to(dtype)
    fast.requires_grad_(True)
    with torch.inference_mode():
        fast(x)
    assert fast.weight.is_contiguous()
    fast.requires_grad_(False)
    with torch.inference_mode():
        fast(x)
    assert not fast.weight.is_contiguous()
    fast.requires_grad_(True)
    fast(x).sum().backward()
    torch.testing.assert_close(fast.weight.grad, x.sum(dim=0).unsqueeze(1).expand(-1, 1024), rtol=1e-2, atol=1e-2)
