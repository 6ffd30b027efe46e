"""Published layouts: strict loading, faithful saving, errors that say what to do."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel
from transformers.activations import GELUTanh, NewGELUActivation

from latent_tts.backbones import Coconut, load_backbone
from latent_tts.backbones.training import load_for_training
from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError


@pytest.mark.parametrize("layout", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", ["coconut", "codi", "colar"])
def test_a_saved_backbone_comes_back_the_same(kind, layout, tiny_backbone, questions, tmp_path):
    backbone = tiny_backbone(kind, layout, num_latents=4)
    backbone.prompt_form = "Q: " + backbone.prompt_form
    backbone.save_pretrained(tmp_path)
    again = load_backbone(tmp_path)
    assert again.kind == kind
    assert again.num_latents == 4
    assert again.fingerprint() == backbone.fingerprint()
    first, second = (RolloutEngine(b, max_answer_tokens=4).rollout(questions, 1) for b in (backbone, again))
    if layout == "llama":
        assert torch.equal(first.latents, second.latents)
    else:  # made here with an activation that loading takes in its fused form: the same function, other last bits
        torch.testing.assert_close(first.latents, second.latents, atol=1e-5, rtol=1e-5)
        again.save_pretrained(tmp_path / "again")
        third = RolloutEngine(load_backbone(tmp_path / "again"), max_answer_tokens=4).rollout(questions, 1)
        assert torch.equal(second.latents, third.latents)
    assert first.texts == second.texts


def test_an_activation_is_made_in_its_fused_form_which_computes_the_same_and_is_saved_under_its_own_name(
    reference, tmp_path
):
    """The reference is transformers' own model of the same weights, with the activation that the config names."""
    model: Any = load_backbone(reference / "coconut").model
    plain = GPT2LMHeadModel.from_pretrained(reference / "coconut").eval()
    assert isinstance(plain.transformer.h[0].mlp.act, NewGELUActivation)
    assert isinstance(model.transformer.h[0].mlp.act, GELUTanh)
    ids = torch.arange(5, 25).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, atol=1e-5, rtol=1e-5)
    load_for_training(Coconut, reference / "coconut").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["activation_function"] == "gelu_new"


@pytest.mark.parametrize("kind", ["coconut", "codi", "colar"])
def test_saving_a_published_checkpoint_keeps_its_keys_and_values(kind, reference, tmp_path):
    load_backbone(reference / kind).save_pretrained(tmp_path)
    published, ours = (load_file(folder / "model.safetensors") for folder in (reference / kind, tmp_path))
    assert published.keys() == ours.keys()
    assert all(torch.equal(published[key], ours[key]) for key in published)
    config = json.loads((tmp_path / "config.json").read_text())
    extra = {"codi": ["projector", "projector_dropout", "projector_hidden_size"], "colar": ["latent_embedding_std"]}
    original = json.loads((reference / kind / "config.json").read_text())
    assert all(config[key] == original[key] for key in extra.get(kind, []))


def test_half_precision_storage_halves_the_file_and_loads_as_float32(tiny_backbone, tmp_path):
    backbone = tiny_backbone()
    backbone.save_pretrained(tmp_path / "full")
    backbone.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    full, half = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half"))
    assert half < 0.6 * full
    assert load_backbone(tmp_path / "half").dtype == torch.float32


def test_every_weight_that_does_not_fit_is_listed(tiny_backbone, tmp_path):
    tiny_backbone().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["transformer.wpe.weight"] = weights["transformer.wpe.weight"][:10].clone()
    weights["transformer.extra"] = torch.zeros(1)
    del weights["transformer.ln_f.bias"], weights["transformer.h.0.ln_1.bias"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError) as error:
        load_backbone(tmp_path)
    message = str(error.value)
    assert "missing: " in message
    assert "transformer.ln_f.bias" in message
    assert "transformer.h.0.ln_1.bias" in message
    assert "unexpected: transformer.extra" in message
    assert "resized: transformer.wpe.weight (10, 32) instead of (256, 32)" in message


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "holds no config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no .safetensors file"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{"), "cannot be read as safetensors"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
    ],
    ids=["no config", "no weights", "cut off", "no tokenizer", "malformed config"],
)
def test_broken_folders_are_named(spoil, message, tiny_backbone, tmp_path):
    tiny_backbone().save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        load_backbone(tmp_path)


def test_a_checkpoint_of_another_kind_is_refused(reference, tmp_path):
    with pytest.raises(UserError, match="holds a coconut checkpoint, not codi"):
        load_backbone(reference / "coconut", kind="codi")
    with pytest.raises(UserError, match="kind must be one of coconut, codi, colar, cot, got 'token'"):
        load_backbone(reference / "coconut", kind="token")
    shutil.copytree(reference / "coconut", tmp_path / "plain")
    for file in (tmp_path / "plain").glob("tokenizer*.json"):
        file.write_text(file.read_text().replace("<|end-latent|>", "<|other|>"))
    with pytest.raises(UserError, match=r"no token '<\|end-latent\|>'"):
        load_backbone(tmp_path / "plain")


def test_names_that_lead_nowhere(tmp_path, forbid_network):
    with pytest.raises(UserError, match="There is no folder './nowhere'"):
        load_backbone("./nowhere")
    with pytest.raises(UserError, match="hub could not give 'somebody/some-model'"):
        load_backbone("somebody/some-model")


def test_a_backbone_that_never_thinks_is_refused(tiny_backbone, tmp_path):
    tiny_backbone().save_pretrained(tmp_path)
    for count in (0, -2):
        with pytest.raises(UserError, match=f"num_latents must be at least 1, got {count}"):
            load_backbone(tmp_path, num_latents=count)


@pytest.mark.parametrize("layout", ["gpt2", "llama"])
def test_any_causal_lm_becomes_a_backbone(layout, tiny_causal_lm, tiny_tokenizer, questions, tmp_path):
    tokenizer = tiny_tokenizer(())
    model = tiny_causal_lm(layout, len(tokenizer))
    before = model.get_input_embeddings().weight.detach().clone()
    backbone = Coconut.from_causal_lm(model, tokenizer, num_latents=2)
    after = backbone.model.get_input_embeddings().weight
    assert len(after) == len(before) + 3  # type: ignore[arg-type]
    assert torch.equal(after[: len(before)], before)  # type: ignore[index]
    torch.testing.assert_close(after[-3:], before.mean(dim=0).expand(3, -1))  # type: ignore[index]
    assert backbone.encode_prompts(["hm"])[0][-1] == backbone.tokenizer.get_vocab()["<|start-latent|>"]
    backbone.save_pretrained(tmp_path)
    assert load_backbone(tmp_path).fingerprint() == backbone.fingerprint()


def test_a_saved_tokenizer_does_not_say_how_it_was_read(tiny_checkpoint, tmp_path):
    """Offline or not, from a hub or a folder: an export has the same bytes everywhere."""
    load_backbone(tiny_checkpoint).save_pretrained(tmp_path)
    assert not {"is_local", "local_files_only"} & json.loads((tmp_path / "tokenizer_config.json").read_text()).keys()
