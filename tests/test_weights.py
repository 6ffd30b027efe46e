"""Every weight of a checkpoint is used or refused, and every token of a vocabulary has a row and a meaning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from latent_tts.backbones import Coconut, load_backbone
from latent_tts.backbones.causal_lm import load_causal_lm
from latent_tts.backbones.files import commit_of, resolve_folder
from latent_tts.backbones.training import load_for_training
from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError
from latent_tts.reward.loading import load_reward_model
from latent_tts.reward.model import LatentRewardModel
from tests.conftest import QUESTIONS
from tests.families import tiny_model


@pytest.fixture
def folder(tiny_backbone, tmp_path) -> Path:
    tiny_backbone("coconut", "gpt2").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(folder: Path, edit) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


LOADERS = {
    "evaluation": load_backbone,
    "training": lambda folder: load_for_training(Coconut, folder),
    "base of adapters": load_causal_lm,
}


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_a_head_of_its_own_under_a_config_that_says_tied_is_refused_and_an_equal_one_is_not(load, folder):
    table = load_file(folder / "model.safetensors")["transformer.wte.weight"]
    change(folder, lambda weights: weights.update({"lm_head.weight": table.clone()}))
    load(folder)
    change(folder, lambda weights: weights.update({"lm_head.weight": table.flip(0).contiguous()}))
    with pytest.raises(
        UserError, match=r"holds a lm_head.weight of its own, .* \(tie_word_embeddings\): set that to false"
    ):
        load(folder)


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_both_tables_are_used_where_the_config_says_that_they_are_two(load, folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    table = load_file(folder / "model.safetensors")["transformer.wte.weight"]
    change(folder, lambda weights: weights.update({"lm_head.weight": table.flip(0).contiguous()}))
    loaded = load(folder)
    model = getattr(loaded, "model", loaded)
    assert torch.equal(model.get_input_embeddings().weight, table)
    assert torch.equal(model.get_output_embeddings().weight, table.flip(0))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_weights_that_are_no_numbers_are_refused_by_name(load, value, folder):
    change(folder, lambda weights: weights["transformer.h.1.mlp.c_fc.weight"].__setitem__((0, 0), value))
    with pytest.raises(UserError, match=r"1 of 4096 numbers in transformer.h.1.mlp.c_fc.weight are NaN or infinite"):
        load(folder)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_weights_of_a_wrapped_model_are_refused_with_a_hint(load, prefix, folder):
    weights = {prefix + key: value for key, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"saved from a wrapped model .* take '{prefix}' off the keys") as refusal:
        load(folder)
    assert len(str(refusal.value)) < 400


def test_a_reward_models_weights_are_held_to_the_same(tiny_backbone, tmp_path):
    LatentRewardModel.from_backbone(tiny_backbone()).save_pretrained(tmp_path)
    change(tmp_path, lambda weights: weights["classifier.weight"].__setitem__((0, 0), float("nan")))
    with pytest.raises(UserError, match="1 of 32 numbers in classifier.weight are NaN or infinite"):
        load_reward_model(tmp_path)


# Stop tokens -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["config", "generation config"])
def test_an_answer_ends_at_each_stop_token_wherever_it_is_named(place, folder, questions):
    plain = RolloutEngine(load_backbone(folder), max_answer_tokens=8).rollout(questions, 1)
    stop = int(plain.answer_ids[:, 0, 2].mode().values)  # the third token of some answers
    if place == "config":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [stop, 0]}))
    else:
        GenerationConfig(eos_token_id=[0, stop]).save_pretrained(folder)
    backbone = load_backbone(folder)
    assert backbone.eos_token_id == 0 and set(backbone.eos_token_ids) == {0, stop}
    ended = RolloutEngine(backbone, max_answer_tokens=8).rollout(questions, 1)
    for before, after in zip(plain.answer_ids[:, 0].tolist(), ended.answer_ids[:, 0].tolist(), strict=True):
        length = next((i + 1 for i, token in enumerate(before) if token in (0, stop)), len(before))
        assert after == before[:length] + [backbone.pad_token_id] * (8 - length)
    backbone.save_pretrained(folder.parent / "again")
    assert set(load_backbone(folder.parent / "again").eos_token_ids) == {0, stop}


# Rows of added tokens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare", [0, 2, 64])
def test_added_tokens_start_from_the_mean_of_the_tokens_that_were_there_in_both_tables(
    tied, spare, tiny_causal_lm, tiny_tokenizer
):
    tokenizer = tiny_tokenizer(())
    size = len(tokenizer)
    model = tiny_causal_lm("llama", size + spare, tie_word_embeddings=tied)
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    with torch.no_grad():
        for table in tables:
            table[size:] = 0.0
    before = [table[:size].clone() for table in tables]
    backbone = Coconut.from_causal_lm(model, tokenizer)
    ids = [backbone.tokenizer.get_vocab()[token] for token in Coconut.special_tokens]
    assert ids == [size, size + 1, size + 2]
    after = [backbone.model.get_input_embeddings().weight, backbone.model.get_output_embeddings().weight]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[:size], old)
        torch.testing.assert_close(new[ids], old.mean(dim=0).expand(3, -1))
    assert len(after[0]) == max(size + spare, size + 3)


# Scores of the vocabulary ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "fields"),
    {
        "llama": {},
        "cohere": {"logit_scale": 0.25},
        "granite": {"logits_scaling": 8.0},
        "gemma2": {"final_logit_softcapping": 0.7},
        "minicpm3": {"dim_model_base": 16},
        "gptj": {},  # whose head has a bias
    }.items(),
)
def test_scores_and_losses_are_those_of_the_models_own_forward_pass(family, fields, tiny_tokenizer):
    tokenizer = tiny_tokenizer(())
    backbone = Coconut.from_causal_lm(tiny_model(family, vocab_size=len(tokenizer), **fields), tokenizer)
    ids = torch.tensor(backbone.encode_prompts(QUESTIONS[:1]))
    with torch.no_grad():
        own = backbone.model(input_ids=ids, labels=ids, use_cache=False)
        hidden = backbone.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        torch.testing.assert_close(backbone.logits(hidden), own.logits, rtol=1e-4, atol=1e-5)
        loss = torch.nn.functional.cross_entropy(backbone.logits(hidden)[0, :-1], ids[0, 1:])
    torch.testing.assert_close(loss, own.loss, rtol=1e-4, atol=1e-5)
    assert torch.equal(backbone.most_likely(hidden[0]), own.logits[0].argmax(dim=-1))


# Revisions -------------------------------------------------------------------------------------------------------------------


def test_a_revision_is_asked_for_and_the_commit_it_leads_to_is_known(folder, tmp_path, monkeypatch):
    commit, asked = "0123456789abcdef" * 2 + "01234567", []

    def download(name, revision, allow_patterns):
        asked.append((name, revision))
        shutil.copytree(folder, tmp_path / "snapshots" / commit, dirs_exist_ok=True)
        return str(tmp_path / "snapshots" / commit)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_backbone("somebody/some-model", revision="v1").commit == commit
    assert load_backbone("somebody/some-model@refs/pr/1").commit == commit
    assert asked == [("somebody/some-model", "v1"), ("somebody/some-model", "refs/pr/1")]
    with pytest.raises(UserError, match="names a revision, and so does revision 'v1': give one of the two"):
        resolve_folder("somebody/some-model@v2", revision="v1")
    with pytest.raises(UserError, match="There is no folder 'somebody/some-model@'"):
        resolve_folder("somebody/some-model@")
    assert load_backbone(folder).commit is None and commit_of(folder) is None
    with pytest.raises(UserError, match="which has no revision 'v1': drop it, or give a hub id"):
        resolve_folder(folder, revision="v1")
