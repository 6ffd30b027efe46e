"""Adapters on disk: they and their base are the model that was trained, peft reads them too, and no other base is taken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from callbacks.export import Export, ExportModel
from commands.export import export_run
from commands.extract_adapters import extract_adapters
from latent_tts.backbones.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, save_adapters
from latent_tts.backbones.causal_lm import load_causal_lm
from latent_tts.backbones.kinds import KINDS
from latent_tts.backbones.loading import load_backbone
from latent_tts.backbones.lora import LoRA, add_lora, hold_frozen_layers_in_bfloat16, merged
from latent_tts.backbones.metadata import METADATA_FILE
from latent_tts.backbones.training import load_for_training
from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError
from tests.conftest import QUESTIONS
from tests.training import make_data, make_module, make_trainer, write_tiny_model

pytestmark = pytest.mark.slow

KINDS_AND_LAYOUTS = [("coconut", "gpt2"), ("coconut", "llama"), ("codi", "gpt2"), ("colar", "llama"), ("cot", "llama")]


@pytest.fixture(scope="module")
def base(tiny_causal_lm, tiny_tokenizer, tmp_path_factory):
    """Writes a causal LM of a layout that knows none of the thoughts' tokens."""

    def write(layout: str, **overrides) -> Path:
        folder = tmp_path_factory.mktemp("base") / layout
        tokenizer = tiny_tokenizer(())
        tiny_causal_lm(layout, len(tokenizer), **overrides).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return write


def trained(kind: str, folder: Path, **options):
    """A backbone with adapters, every trained weight of which has moved."""
    backbone = load_for_training(KINDS[kind], str(folder))
    add_lora(backbone, LoRA(**({"r": 4, "alpha": 8, "dropout": 0.0} | options)))
    generator = torch.Generator().manual_seed(0)
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return backbone.eval()


def rollouts(backbone):
    return RolloutEngine(backbone, max_answer_tokens=6).rollout(QUESTIONS, num_rollouts=1)


@pytest.mark.parametrize(("kind", "layout"), KINDS_AND_LAYOUTS)
@pytest.mark.parametrize("train_embeddings", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_adapters_and_their_base_are_the_trained_backbone(base, tmp_path, kind, layout, train_embeddings, tied):
    folder = base(layout, tie_word_embeddings=tied)
    backbone = trained(kind, folder, train_embeddings=train_embeddings)
    save_adapters(backbone, str(folder), tmp_path)
    loaded = load_backbone(tmp_path)
    assert type(loaded) is KINDS[kind]
    expected, found = merged(backbone).published_state_dict(), loaded.published_state_dict()
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-6, rtol=1e-6, msg=key)
    if kind != "cot":
        one, two = rollouts(backbone), rollouts(loaded)
        assert one.texts == two.texts
        torch.testing.assert_close(two.latents, one.latents, atol=1e-3, rtol=1e-3)


# peft has warnings of its own on reading adapters
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("layout", ["gpt2", "llama"])
def test_peft_reads_the_adapters_as_its_own(base, tmp_path, layout):
    folder = base(layout)
    backbone = trained("cot", folder)  # written reasoning adds no token, so that the base has all rows
    save_adapters(backbone, str(folder), tmp_path)
    wrapped = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path).eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(wrapped(ids).logits, load_backbone(tmp_path).model(ids).logits, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(wrapped(ids).logits, load_causal_lm(folder)(ids).logits, atol=1e-2)


def test_nothing_of_the_base_is_stored(base, tmp_path):
    """A COCONUT adds three tokens: their rows are stored, the table they were put behind is not."""
    folder = base("llama", tie_word_embeddings=True)
    save_adapters(trained("coconut", folder), str(folder), tmp_path, torch.bfloat16)
    stored = load_file(tmp_path / ADAPTER_WEIGHTS)
    others = {key: value for key, value in stored.items() if ".lora_" not in key}
    assert {key: value.shape for key, value in others.items()} == {"model.embed_tokens.weight.added_rows": (3, 32)}
    assert len(stored) == 1 + 2 * 7 * 2  # two factors of seven layers in two blocks
    assert all(value.dtype == torch.bfloat16 for value in stored.values())
    assert not (tmp_path / "model.safetensors").exists()


def test_training_goes_on_from_stored_adapters_as_from_the_whole_model(base, tmp_path):
    folder = base("llama")
    backbone = trained("coconut", folder)
    save_adapters(backbone, str(folder), tmp_path / "adapters")
    merged(backbone).save_pretrained(tmp_path / "whole")
    one, two = (load_for_training(KINDS["coconut"], str(tmp_path / name)) for name in ("adapters", "whole"))
    for (key, value), other in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, atol=1e-6, rtol=1e-6, msg=key)
    add_lora(one, LoRA(r=2))
    with pytest.raises(UserError, match="itself stored as adapters"):
        save_adapters(one, str(tmp_path / "adapters"), tmp_path / "more")


def test_another_base_or_none_is_refused(base, tmp_path):
    folder = base("gpt2")
    save_adapters(trained("coconut", folder), str(folder), tmp_path)
    config = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    for name, reason in (
        (str(base("gpt2", initializer_range=0.1)), "other weights"),
        ("/no/such/base", "need the model"),
    ):
        (tmp_path / ADAPTER_CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": name}))
        with pytest.raises(UserError, match=reason):
            load_backbone(tmp_path)


def test_a_backbone_without_adapters_has_none_to_store(base, tmp_path):
    folder = base("gpt2")
    with pytest.raises(UserError, match="trained in full"):
        save_adapters(load_for_training(KINDS["coconut"], str(folder)), str(folder), tmp_path / "out")
    model = write_tiny_model(tmp_path / "model")
    trainer = make_trainer(max_epochs=1, callbacks=[ExportModel(tmp_path / "out", Export(adapters_only=True))])
    with pytest.raises(UserError, match="--model.lora"):
        trainer.fit(make_module(model), datamodule=make_data(tmp_path, 8))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_training_and_its_checkpoint_export_the_same_adapters(tmp_path, precision):
    model = write_tiny_model(tmp_path / "model")
    module = make_module(model, lora=LoRA(r=2))
    keep = ModelCheckpoint(tmp_path / "kept", "last", save_on_train_epoch_end=True)
    callbacks = [keep, ExportModel(tmp_path / "export", Export(adapters_only=True))]
    make_trainer(max_epochs=2, precision=precision, callbacks=callbacks, enable_checkpointing=True).fit(
        module, datamodule=make_data(tmp_path, 8)
    )
    export_run(tmp_path / "kept" / "last.ckpt", tmp_path / "again", "float32", adapters_only=True)
    one, two = (load_file(tmp_path / name / ADAPTER_WEIGHTS) for name in ("export", "again"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert json.loads((tmp_path / "export" / METADATA_FILE).read_text())["kind"] == "coconut"
    expected, found = (
        merged(module.backbone).published_state_dict(),
        load_backbone(tmp_path / "export").published_state_dict(),
    )
    assert all(torch.allclose(found[key], value, atol=1e-6) for key, value in expected.items())


def test_frozen_layers_held_in_bfloat16_change_no_bit(base):
    """Weights that are bfloat16 numbers are held as such; one that is not stays as it is."""
    backbone = trained("coconut", base("llama"))
    frozen = {key: value for key, value in backbone.named_parameters() if ".base_layer." in key}
    for value in frozen.values():
        value.data = value.data.bfloat16().float()
    odd = next(key for key in frozen if "down_proj" in key)
    frozen[odd].data[0, 0] += 1e-6
    ids = torch.arange(40).view(2, 20)

    def loss_and_gradients():
        backbone.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = backbone.model(ids, labels=ids).loss
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in backbone.parameters() if p.grad is not None]

    before, whole = loss_and_gradients(), merged(backbone).state_dict()
    hold_frozen_layers_in_bfloat16(backbone)
    held = {key for key, value in backbone.named_parameters() if value.dtype == torch.bfloat16}
    assert held == set(frozen) - {odd}
    after = loss_and_gradients()
    assert torch.equal(before[0], after[0])
    assert all(torch.equal(one, two) for one, two in zip(before[1], after[1], strict=True))
    again = merged(backbone).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in whole.items())


def moved(kind: str, folder: Path, rank: int):
    """A backbone whose every layer, norm and bias has moved away from its base, the matrices by a change of this rank."""
    backbone = load_for_training(KINDS[kind], str(folder))
    generator = torch.Generator().manual_seed(1)
    tables = {id(backbone.model.get_input_embeddings().weight), id(backbone.model.get_output_embeddings().weight)}
    for parameter in backbone.model.parameters():
        if parameter.ndim == 2 and id(parameter) not in tables:
            one, two = (torch.randn(side, rank, generator=generator) for side in parameter.shape)
            parameter.data += 0.03 * one @ two.T
        elif parameter.ndim == 1:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return backbone.eval()


@pytest.mark.parametrize(("kind", "layout"), [("coconut", "gpt2"), ("colar", "llama"), ("cot", "llama")])
def test_a_change_of_low_rank_is_extracted_whole(base, tmp_path, kind, layout):
    folder = base(layout, tie_word_embeddings=layout == "gpt2")
    backbone = moved(kind, folder, rank=3)
    assert extract_adapters(backbone, str(folder), 3, tmp_path) == pytest.approx(1.0, abs=1e-5)
    expected, found = backbone.published_state_dict(), load_backbone(tmp_path).published_state_dict()
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-5, rtol=1e-4, msg=key)


def test_what_is_extracted_is_the_best_of_its_rank(base, tmp_path):
    """Compared with numpy's decomposition of every difference; the share kept is that of the squared singular values."""
    folder = base("gpt2")
    backbone = moved("coconut", folder, rank=6)
    share = extract_adapters(backbone, str(folder), 2, tmp_path)
    before, after = dict(load_causal_lm(folder).state_dict()), load_backbone(tmp_path).model.state_dict()
    kept = total = 0.0
    for key, value in backbone.model.state_dict().items():
        if value.ndim == 2 and not key.endswith(("wte.weight", "wpe.weight", "lm_head.weight")):
            left, singular, right = np.linalg.svd((value - before[key]).numpy().astype(np.float64), full_matrices=False)
            best = (left[:, :2] * singular[:2]) @ right[:2]
            np.testing.assert_allclose((after[key] - before[key]).numpy(), best, atol=1e-5)
            kept, total = kept + (singular[:2] ** 2).sum(), total + (singular**2).sum()
    assert share == pytest.approx(kept / total, rel=1e-4) and share < 0.9


def test_impossible_ranks_are_refused(base, tmp_path):
    folder = base("llama")
    for r in (0, 33):
        with pytest.raises(UserError, match="r must lie between 1 and 16"):  # keys and values of two heads
            extract_adapters(moved("coconut", folder, 1), str(folder), r, tmp_path)


@pytest.mark.parametrize(("kind", "layout"), [("coconut", "llama"), ("codi", "gpt2")])
def test_training_goes_on_in_the_stored_adapters(base, tmp_path, kind, layout):
    """Also where alpha is another: outputs are those of the stored model, and what is saved again is the same."""
    folder = base(layout)
    backbone = trained(kind, folder)
    save_adapters(backbone, str(folder), tmp_path / "stored")
    again = load_for_training(KINDS[kind], str(folder), seed=7)
    add_lora(again, LoRA(r=4, alpha=2, dropout=0.0, adapters=str(tmp_path / "stored")))
    one, two = rollouts(backbone), rollouts(again.eval())
    assert one.texts == two.texts
    torch.testing.assert_close(two.latents, one.latents, atol=1e-3, rtol=1e-3)
    save_adapters(again, str(folder), tmp_path / "again")
    stored, saved = load_backbone(tmp_path / "stored"), load_backbone(tmp_path / "again")
    for key, value in stored.published_state_dict().items():
        torch.testing.assert_close(saved.published_state_dict()[key], value, atol=1e-6, rtol=1e-5, msg=key)


def test_adapters_of_another_shape_or_base_are_not_gone_on_from(base, tmp_path):
    folder, other = base("llama"), base("llama", initializer_range=0.1)
    save_adapters(trained("coconut", folder), str(folder), tmp_path)
    for model, r, reason in ((folder, 2, "do not fit"), (other, 4, "another base")):
        with pytest.raises(UserError, match=reason):
            add_lora(load_for_training(KINDS["coconut"], str(model)), LoRA(r=r, adapters=str(tmp_path)))
