"""MC-dropout masks what every sub-layer of a decoder adds, each once, whatever the family calls it; or the model is refused."""

from __future__ import annotations

import copy

import pytest
import torch

from latent_tts.backbones.lora import LoRA, add_lora
from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError
from latent_tts.sampling import MonteCarloDropout
from latent_tts.sampling.dropout_sites import find_sites
from tests.families import tiny_model

NAMES = {  # of the first block, read from the families' own source
    "gpt2": ("transformer.h.0.attn.c_proj", "transformer.h.0.mlp.c_proj"),
    "llama": ("model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"),
    "qwen2": ("model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"),
    "gemma2": ("model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"),
    "phi": ("model.layers.0.self_attn.dense", "model.layers.0.mlp.fc2"),
    "opt": ("model.decoder.layers.0.self_attn.out_proj", "model.decoder.layers.0.fc2"),
    "gpt_neox": ("gpt_neox.layers.0.attention.dense", "gpt_neox.layers.0.mlp.dense_4h_to_h"),
    "gptj": ("transformer.h.0.attn.out_proj", "transformer.h.0.mlp.fc_out"),
    "falcon": ("transformer.h.0.self_attention.dense", "transformer.h.0.mlp.dense_4h_to_h"),
    "gpt_neo": ("transformer.h.0.attn.attention.out_proj", "transformer.h.0.mlp.c_proj"),
}


@pytest.mark.parametrize("family", NAMES)
def test_the_output_projections_of_every_block_are_found(family):
    found = find_sites(tiny_model(family))
    for names, first in zip(found, NAMES[family], strict=True):
        assert names == tuple(first.replace(".0.", f".{block}.") for block in range(2))


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "gpt_oss", "deepseek_v3"])
def test_mixtures_of_experts_are_refused(family):
    with pytest.raises(UserError, match=f"A model of type {family} is a mixture of experts"):
        find_sites(tiny_model(family))


def test_a_model_that_adds_to_its_states_elsewhere_is_refused():
    model = tiny_model("llama", rms_norm_eps=3e-6)  # its own configuration: findings are kept
    block = type("Block", (type(model.model.layers[1]),), {"forward": lambda self, x, **kwargs: x + 0.1 * x.flip(-1)})
    model.model.layers[1].__class__ = block
    model.model.layers.append(
        copy.deepcopy(model.model.layers[1])
    )  # what the last block does is seen behind the norm alone
    model.config.num_hidden_layers = 3
    with pytest.raises(UserError, match="adds to its hidden states at other places than MC-dropout masks"):
        find_sites(model)


def test_a_backbone_is_refused_before_anything_is_rolled_out(tiny_tokenizer):
    from latent_tts.backbones import Coconut

    backbone = Coconut.from_causal_lm(tiny_model("mixtral"), tiny_tokenizer(()))
    for sites in ("ffn", "residual"):
        with pytest.raises(UserError, match="is a mixture of experts"):
            RolloutEngine(backbone, MonteCarloDropout(sites=sites))


def test_frozen_layers_and_layers_with_adapters_are_the_same_sites(tiny_backbone):
    backbone = tiny_backbone("coconut", "llama")
    plain = find_sites(backbone.model)
    assert find_sites(copy.deepcopy(backbone).freeze().model) == plain
    add_lora(backbone, LoRA(r=2))
    adapted = copy.deepcopy(backbone.model)
    assert find_sites(adapted) == plain
    masked = dict.fromkeys((*plain.attention, *plain.feed_forward), 0)
    for name in masked:
        adapted.get_submodule(name).register_forward_hook(lambda *_, name=name: masked.update({name: masked[name] + 1}))
    with torch.no_grad():
        adapted(input_ids=torch.arange(5).unsqueeze(0))
    assert set(masked.values()) == {1}
