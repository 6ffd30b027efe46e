"""Perturbed value projections: found in any family or refused, rescaled as said, and without weights of each row's own.

That rollouts with them equal a plain model with other weights is in `tests/test_rollout.py`, with those of every sampler.
"""

from __future__ import annotations

import copy

import pytest
import torch

from latent_tts.backbones import Coconut
from latent_tts.backbones.lora import LoRA, add_lora
from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError
from latent_tts.sampling import SingularValuePerturbation
from latent_tts.sampling.singular_value_perturbation import _SALT, SingularBasis
from latent_tts.sampling.value_projections import find_value_projections
from latent_tts.seeding import fold_in, normal, problem_keys
from tests.families import tiny_model

FUSED, SEPARATE = ["gpt2"], ["llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "opt"]
REFUSED = ["gpt_neox", "falcon", "bloom", "mpt", "phi3"]  # fused in other orders, or under other names


@pytest.mark.parametrize("family", FUSED + SEPARATE)
def test_one_projection_a_block_is_found(family):
    model = tiny_model(family)
    found = find_value_projections(model)
    names = {module: name for name, module in model.named_modules()}
    last = [names[one.layer].split(".")[-1] for one in found]
    assert last == ["c_attn" if family in FUSED else "v_proj"] * 2
    assert [one.first for one in found] == [64 if family in FUSED else 0] * 2


@pytest.mark.parametrize("family", REFUSED)
def test_other_families_are_refused_before_anything_is_rolled_out(family, tiny_tokenizer):
    backbone = Coconut.from_causal_lm(tiny_model(family), tiny_tokenizer(()))
    with pytest.raises(UserError, match=f"A model of type {family} has no value projections of its own"):
        RolloutEngine(backbone, SingularValuePerturbation())


def test_adapters_are_refused(tiny_backbone):
    backbone = tiny_backbone("coconut", "llama")
    add_lora(backbone, LoRA(r=2))
    with pytest.raises(UserError, match="without adapters"):
        RolloutEngine(backbone, SingularValuePerturbation())


def test_a_model_that_attends_to_something_else_too_is_refused():
    model = tiny_model("llama", rms_norm_eps=4e-6)  # its own configuration: findings are kept
    for block in model.model.layers:
        block.self_attn.o_proj.register_forward_pre_hook(lambda _, inputs: (inputs[0] + 1.0,))
    with pytest.raises(UserError, match="attends to more than what its value projections give"):
        find_value_projections(model)


@pytest.mark.parametrize("layout", ["gpt2", "llama"])
@pytest.mark.parametrize("freeze", [False, True])
def test_what_is_added_is_the_change_of_the_singular_values(layout, freeze, tiny_backbone):
    """x U diag(s eps) V^T, from a decomposition of the plain weights, for factors of each row's own."""
    backbone = tiny_backbone("coconut", layout)
    block = backbone.model.base_model.h[0] if layout == "gpt2" else backbone.model.base_model.layers[0]
    weight = block.attn.c_attn.weight[:, 64:] if layout == "gpt2" else block.self_attn.v_proj.weight.t()
    left, strengths, right = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    backbone = copy.deepcopy(backbone).freeze() if freeze else backbone
    basis = SingularBasis(find_value_projections(backbone.model)[0])
    generator = torch.Generator().manual_seed(0)
    x, eps = torch.randn(3, 2, 32, generator=generator), torch.randn(3, 1, len(strengths), generator=generator)
    expected = torch.stack(
        [row @ (left * (strengths * e)).float() @ right.float() for row, e in zip(x, eps, strict=True)]
    )
    with torch.inference_mode():
        torch.testing.assert_close((basis.freeze() if freeze else basis)(x, eps), expected, rtol=1e-4, atol=1e-5)


def test_singular_values_are_rescaled_by_independent_normal_numbers_per_rollout_and_layer():
    """20,000 rollouts: mean and deviation of a layer's draws within 5 standard errors, no correlation with another layer's."""
    keys = fold_in(problem_keys(0, ["a"]), torch.arange(20_000))
    first, second = (normal(fold_in(fold_in(keys, _SALT), layer), (1,)).squeeze(1).double() for layer in (0, 1))
    assert abs(first.mean()) < 5 / 20_000**0.5 and abs(first.std() - 1) < 5 / 40_000**0.5
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 5 / 20_000**0.5


def test_passes_add_two_products_a_layer_whatever_the_number_of_rows(tiny_backbone, questions):
    """The memory of weights does not grow with the rollouts: the bases have as many rows as the layers have inputs."""
    backbone = tiny_backbone("coconut", "llama")
    basis = SingularBasis(find_value_projections(backbone.model)[0])
    assert {tuple(weight.shape) for weight in basis.parameters()} == {(16, 32), (16, 16)}


def test_weights_that_were_trained_on_are_decomposed_anew_by_the_next_engine(tiny_backbone, questions):
    backbone, sampler = tiny_backbone("coconut", "llama"), SingularValuePerturbation(0.5)
    before = RolloutEngine(backbone, sampler, 2).rollout(questions[:1], 2).latents
    with torch.no_grad():
        for one in find_value_projections(backbone.model):
            one.layer.weight.mul_(2)
    after = RolloutEngine(backbone, sampler, 2)
    fresh = copy.deepcopy(backbone)
    expected = RolloutEngine(fresh, sampler, 2).rollout(questions[:1], 2).latents
    assert torch.equal(after.rollout(questions[:1], 2).latents, expected) and not torch.allclose(expected, before)


@pytest.mark.parametrize("sigma", [-0.1, float("nan"), float("inf")])
def test_impossible_strengths_are_refused(sigma):
    with pytest.raises(UserError, match="sigma must be a finite number and not negative"):
        SingularValuePerturbation(sigma)


def test_a_scope_that_is_none_is_refused():
    with pytest.raises(UserError, match="scope must be one of latent"):
        SingularValuePerturbation(scope="answer")  # type: ignore[arg-type]
