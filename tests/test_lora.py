"""Adapters: nothing changes when they are put in, merging changes nothing either, and what is trained is what was asked for."""

from __future__ import annotations

import pytest
import torch

from latent_tts.backbones.loading import load_backbone
from latent_tts.backbones.lora import LoRA, add_lora, merged
from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError
from tests.conftest import QUESTIONS

KINDS_AND_LAYOUTS = [("coconut", "gpt2"), ("codi", "gpt2"), ("codi", "llama"), ("colar", "llama")]


def rollouts(backbone):
    return RolloutEngine(backbone, max_answer_tokens=6).rollout(QUESTIONS, num_rollouts=1)


def disturb(backbone) -> None:
    """Every trained weight moves, so that an adapter is no longer nothing."""
    generator = torch.Generator().manual_seed(0)
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(("kind", "layout"), KINDS_AND_LAYOUTS)
def test_fresh_adapters_change_nothing(tiny_backbone, kind, layout):
    backbone = tiny_backbone(kind, layout)
    before = rollouts(backbone)
    add_lora(backbone, LoRA(r=4, dropout=0.5))
    assert torch.equal(rollouts(backbone.eval()).latents, before.latents)


@pytest.mark.parametrize(("kind", "layout"), KINDS_AND_LAYOUTS)
@pytest.mark.parametrize("train_embeddings", [False, True])
def test_a_saved_merge_gives_the_outputs_with_adapters(tiny_backbone, tmp_path, kind, layout, train_embeddings):
    backbone = tiny_backbone(kind, layout)
    before = rollouts(backbone)
    add_lora(backbone, LoRA(r=4, alpha=8, train_embeddings=train_embeddings))
    disturb(backbone)
    after = rollouts(backbone.eval())
    assert not torch.allclose(after.latents, before.latents, atol=1e-2)
    merged(backbone).save_pretrained(tmp_path)
    loaded = load_backbone(tmp_path, kind=kind)
    assert loaded.state_dict().keys() == tiny_backbone(kind, layout).state_dict().keys()
    again = rollouts(loaded)
    assert again.texts == after.texts
    torch.testing.assert_close(again.latents, after.latents, atol=1e-4, rtol=1e-4)


def test_merging_leaves_the_backbone_that_is_being_trained_alone(tiny_backbone):
    backbone = tiny_backbone("codi", "llama")
    add_lora(backbone, LoRA(r=4))
    disturb(backbone)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    merged(backbone)
    assert before.keys() == backbone.state_dict().keys()
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


def test_adapters_sit_on_all_linear_layers_of_the_blocks_and_the_own_modules_train_in_full(tiny_backbone):
    """GPT-2 has four linear layers in a block; the vocabulary projection and the embeddings stay as they are."""
    backbone = tiny_backbone("codi", "gpt2")
    add_lora(backbone, LoRA(r=4))
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    adapted = {name.partition(".lora_")[0] for name in trained if "lora_" in name}
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert adapted == {f"model.transformer.h.{block}.{layer}" for block in (0, 1) for layer in layers}
    assert {name for name in trained if "lora_" not in name} == {
        f"projector.{layer}.{part}" for layer in (1, 3, 4) for part in ("weight", "bias")
    }


def test_target_modules_may_be_named(tiny_backbone):
    backbone = tiny_backbone("coconut", "llama")
    add_lora(backbone, LoRA(r=2, target_modules=["q_proj"]))
    trained = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    assert trained and all(".q_proj.lora_" in name for name in trained)
    with pytest.raises(UserError, match="no_such_layer"):
        add_lora(tiny_backbone("coconut", "llama"), LoRA(target_modules=["no_such_layer"]))


def test_a_seed_decides_the_fresh_factors_and_the_global_random_state_is_left_alone(tiny_backbone):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    factors = []
    for seed in (1, 1, 2):
        backbone = tiny_backbone("coconut", "gpt2")
        add_lora(backbone, LoRA(r=2), seed)
        factors.append(torch.cat([p.flatten() for n, p in backbone.named_parameters() if "lora_A" in n]))
    assert torch.equal(factors[0], factors[1]) and not torch.equal(factors[0], factors[2])
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("options", [{"r": 0}, {"dropout": 1.0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(UserError, match="LoRA needs"):
        LoRA(**options)
