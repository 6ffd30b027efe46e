"""The layouts that the CPU likes change no result and no weight."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from latent_tts.acceleration import layers
from latent_tts.acceleration.kernels.library import kernels
from latent_tts.acceleration.layers import (
    FastConv1D,
    FastLinear,
    PackedWeights,
    allow_packing,
    attention_by_products,
    products_train_faster,
    use_fast_layers,
)


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


@pytest.fixture(params=["gpt2", "llama"])
def model(request, tiny_causal_lm) -> nn.Module:
    """A causal LM with wide enough layers for the kernels of every type, in its fast form, frozen."""
    sizes = {"gpt2": {"n_embd": 64}, "llama": {"hidden_size": 64, "intermediate_size": 96}}
    made = tiny_causal_lm(request.param, 96, **sizes[request.param])
    use_fast_layers(made)
    allow_packing(made.requires_grad_(False), but=made.get_output_embeddings())
    return made


def packed_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, PackedWeights) and module.packed]


def run(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(12).view(2, 6)).logits


@pytest.mark.skipif(kernels() is None, reason="no kernels on this machine")
def test_a_frozen_model_answers_the_same_with_packed_layers(model):
    layers = [name for name, module in model.named_modules() if isinstance(module, PackedWeights)]
    expected = copy.deepcopy(model)
    for module in expected.modules():
        module.may_pack = False
    torch.testing.assert_close(run(model), run(expected))
    assert packed_layers(model) == [name for name in layers if name != "lm_head"]  # whose weights are the embeddings'
    assert packed_layers(expected) == []


@pytest.mark.skipif(kernels() is None, reason="no kernels on this machine")
@pytest.mark.parametrize(
    "use",
    {
        "state dict": lambda model: model.state_dict(),
        "another type": lambda model: model.double().float(),
        "loading": lambda model: model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}),
        "autocast": lambda model: torch.autocast("cpu", torch.bfloat16)(run)(model),
    }.items(),
    ids=lambda item: item[0],
)
def test_who_asks_for_packed_weights_gets_them_as_they_were(model, use):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    answered = run(model)
    assert packed_layers(model)
    use[1](model)
    assert packed_layers(model) == []
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name])
    assert torch.equal(run(model), answered)
    assert packed_layers(model)
    assert torch.equal(run(copy.deepcopy(model)), answered)


@pytest.mark.skipif(kernels() is None, reason="no kernels on this machine")
def test_packed_layers_can_be_trained_again(model):
    gradients = []
    for answer_first in (False, True):
        trained = copy.deepcopy(model)
        if answer_first:
            run(trained)
        trained.requires_grad_(True)
        trained(input_ids=torch.arange(12).view(2, 6)).logits.sum().backward()
        gradients.append([weight.grad for weight in trained.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(second, first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_in_training_keep_their_layout_and_laid_out_ones_can_be_trained(dtype):
    _, fast = pair(FastConv1D, 1024, dtype)
    x = torch.randn(3, 48, generator=torch.Generator().manual_seed(1)).to(dtype)
    fast.requires_grad_(True)
    with torch.inference_mode():
        fast(x)
    assert fast.weight.is_contiguous()  # type: ignore[operator]
    fast.requires_grad_(False)
    with torch.inference_mode():
        fast(x)
    assert not fast.weight.is_contiguous()  # type: ignore[operator]
    fast.requires_grad_(True)
    fast(x).sum().backward()
    torch.testing.assert_close(fast.weight.grad, x.sum(dim=0).unsqueeze(1).expand(-1, 1024), rtol=1e-2, atol=1e-2)


def attention_by_loop(query, key, value, mask, scaling):
    """One query position after the other: softmax over the keys it may see, mean of their values."""
    batch, heads, length, _ = query.shape
    shared = heads // key.shape[1]
    out = query.new_zeros(batch, length, heads, value.shape[-1])
    for b in range(batch):
        for h in range(heads):
            for q in range(length):
                seen = [k for k in range(key.shape[2]) if bool(mask[b % len(mask), 0, q, k])]
                scores = torch.stack([scaling * (query[b, h, q] @ key[b, h // shared, k]) for k in seen])
                out[b, q, h] = scores.softmax(0) @ value[b, h // shared, seen]
    return out


@pytest.mark.parametrize("heads", [2, 4])  # of queries; keys have two
@pytest.mark.parametrize("masked", [False, True])
def test_attention_by_products_equals_a_loop_over_positions_and_its_gradients(heads, masked):
    generator = torch.Generator().manual_seed(4)
    length, keys = 3, 5
    query, key, value = (
        torch.randn(2, h, n, 4, generator=generator, requires_grad=True)
        for h, n in ((heads, length), (2, keys), (2, keys))
    )
    mask = torch.ones(2, 1, length, keys, dtype=torch.bool).tril(keys - length)
    mask[1, :, :, 0] = not masked  # a row whose first key is padding
    expected = attention_by_loop(query, key, value, mask, 0.7)
    found, _ = attention_by_products(nn.Module(), query, key, value, mask if masked else None, scaling=0.7)
    torch.testing.assert_close(found, expected)
    seed = torch.randn(expected.shape, generator=generator)
    for mine, theirs in zip(
        torch.autograd.grad(found, (query, key, value), seed),
        torch.autograd.grad(expected, (query, key, value), seed),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_attention_goes_by_products_only_where_bfloat16_is_trained_on_the_cpu():
    query = torch.zeros(1, 1, 1, 4)
    assert products_train_faster(query.bfloat16())
    assert not products_train_faster(query)
    with torch.autocast("cpu", torch.bfloat16):
        assert products_train_faster(query)
        with torch.no_grad():
            assert not products_train_faster(query)
    assert not products_train_faster(query.bfloat16().to("meta"))


def classes(model: nn.Module) -> dict[str, type]:
    return {name: type(module) for name, module in model.named_modules()}


def layouts(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: weight.stride() for name, weight in model.named_parameters()}


LEAVE = {
    "training": lambda backbone: backbone.requires_grad_(True),
    "another device": lambda backbone: backbone.to("meta"),
}


@pytest.mark.slow
@pytest.mark.parametrize("leave", LEAVE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["gpt2", "llama"])
def test_freeze_is_the_one_door_to_fast_layers_and_training_or_another_device_leads_out(
    leave, layout, dtype, tiny_backbone, tiny_causal_lm
):
    sizes = {"n_embd": 1024} if layout == "gpt2" else {"hidden_size": 64}  # rows of GPT-2's weights a page apart
    backbone = tiny_backbone("codi", layout, **sizes).to(dtype)
    own = classes(tiny_causal_lm(layout, len(backbone.tokenizer), **sizes))
    assert classes(backbone.model) == own
    before, strides = {k: v.clone() for k, v in backbone.state_dict().items()}, layouts(backbone)
    backbone.freeze()
    assert classes(backbone.model) != own
    with torch.inference_mode():
        backbone.model(input_ids=torch.arange(12).view(2, 6))  # lays the weights out
    LEAVE[leave](backbone)
    assert classes(backbone.model) == own
    assert layouts(backbone).items() >= strides.items()  # the meta device takes ties apart
    assert not any("_plain_class" in vars(module) for module in backbone.modules())
    if leave == "training":
        assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_a_model_on_an_accelerator_is_frozen_without_another_layer(tiny_backbone):
    backbone = tiny_backbone("coconut", "llama").to("meta")
    own = classes(backbone)
    assert classes(backbone.freeze()) == own
    assert not any(weight.requires_grad for weight in backbone.parameters())
