"""What holds for the training of every kind: splits and resumes change nothing; exported is what was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from callbacks.export import ExportModel
from commands.export import export_run
from latent_tts.backbones.codi import Codi
from latent_tts.backbones.colar import Colar
from latent_tts.backbones.loading import load_backbone
from latent_tts.backbones.lora import LoRA
from latent_tts.backbones.training import load_for_training
from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError
from latent_tts.training.codi import Distillation, DistillationForms
from tests.conftest import QUESTIONS
from tests.training import (
    MAKERS,
    StopAfter,
    flat_gradients,
    flat_weights,
    make_codi,
    make_data,
    make_trainer,
    write_tiny_model,
)

pytestmark = pytest.mark.slow

KINDS = ["codi", "cot"]
OPTIONS = [("codi", {}), ("codi", {"lora": LoRA(r=4)}), ("cot", {})]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("scratch") / "model")


def trained(module, data: Path, batch_size: int, epochs: int = 3, **trainer_options):
    trainer = make_trainer(max_epochs=epochs, limit_val_batches=0, **trainer_options)
    trainer.fit(module, make_data(data, batch_size))
    return module


@pytest.mark.parametrize("kind", KINDS)
def test_splitting_the_global_batch_changes_nothing(kind, model, tmp_path):
    """8 at once against 4 x 2 accumulated; rows differ in length. The last step's gradients are compared, and the weights."""
    whole = trained(MAKERS[kind](model, lr=1e-3), tmp_path, 8, epochs=1)
    split = trained(MAKERS[kind](model, lr=1e-3), tmp_path, 2, epochs=1)
    torch.testing.assert_close(flat_weights(split), flat_weights(whole), atol=2e-4, rtol=0)
    assert (flat_weights(whole) - flat_weights(MAKERS[kind](model))).abs().max() > 1e-3
    scale = float(flat_gradients(whole).abs().max())
    torch.testing.assert_close(flat_gradients(split), flat_gradients(whole), atol=1e-2 * scale, rtol=0)


@pytest.mark.parametrize("kind", [*KINDS, "coconut"])
def test_the_validation_loss_is_the_training_loss_of_the_examples_however_they_are_split(kind, model, tmp_path):
    """Dropout is off, and a COCONUT that was not trained is at its final stage; every term weighs the same."""
    module, found = MAKERS[kind](model), []
    for batch_size in (8, 3):
        data = make_data(tmp_path, batch_size)
        (result,) = make_trainer().validate(module, data, verbose=False)
        found.append(result["val/loss"])
    data.setup("validate")
    examples = [example for batch in data.val_dataloader() for example in batch]
    terms = torch.cat([module.eval().validation_losses([example]) for example in examples])  # type: ignore[misc]
    assert found == pytest.approx([float(terms.mean())] * 2, rel=1e-5)
    assert set(result) <= set(module.logged_metrics)


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
def test_resuming_at_an_epoch_gives_bitwise_the_same_weights(kind, options, model, tmp_path):
    """With a schedule over the whole training, and the dropout of adapters drawn from (seed, epoch, batch)."""
    options = {"schedule": "cosine"} | options
    torch.manual_seed(1)
    straight = flat_weights(trained(MAKERS[kind](model, **options), tmp_path, 4))
    keep = ModelCheckpoint(tmp_path / "kept", save_last=True, save_top_k=0, save_on_train_epoch_end=True)
    torch.manual_seed(2)
    trained(MAKERS[kind](model, **options), tmp_path, 4, callbacks=[keep, StopAfter(2)], enable_checkpointing=True)
    resumed = MAKERS[kind](model, **options)
    trainer = make_trainer(max_epochs=3, limit_val_batches=0)
    trainer.fit(resumed, make_data(tmp_path, 4), ckpt_path=tmp_path / "kept" / "last.ckpt")
    assert torch.equal(flat_weights(resumed), straight)


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
def test_exported_and_loaded_it_answers_as_it_did_in_training(kind, options, model, tmp_path):
    """At the end of the fit, and once more from the checkpoint; adapters are merged."""
    keep = ModelCheckpoint(tmp_path / "kept", save_last=True, save_top_k=0, save_on_train_epoch_end=True)
    callbacks = [keep, ExportModel(str(tmp_path / "export"))]
    module = trained(
        MAKERS[kind](model, **options), tmp_path, 8, epochs=2, callbacks=callbacks, enable_checkpointing=True
    )
    loaded = load_backbone(tmp_path / "export")
    assert (loaded.kind, loaded.num_latents) == (kind, module.backbone.num_latents)
    engine = RolloutEngine(loaded, max_answer_tokens=6)
    assert [texts[0] for texts in engine.rollout(QUESTIONS, 1).texts] == module.eval().generate(QUESTIONS)
    export_run(tmp_path / "kept" / "last.ckpt", tmp_path / "again")
    assert load_backbone(tmp_path / "again").fingerprint() == loaded.fingerprint()


def test_training_goes_on_from_an_exported_codi_with_its_projector(model, tmp_path):
    trained(make_codi(model, projector_hidden_size=24), tmp_path, 8, callbacks=[ExportModel(str(tmp_path / "export"))])
    exported = load_backbone(tmp_path / "export")
    again = make_codi(tmp_path / "export", num_latents=3)
    assert (again.backbone.training, again.backbone.num_latents) == (True, 3)
    assert again.backbone.projector[1].out_features == 24  # type: ignore[index]
    assert all(torch.equal(value, exported.state_dict()[key]) for key, value in again.backbone.state_dict().items())
    trained(again, tmp_path, 8, epochs=1)


@pytest.mark.parametrize(
    ("kind", "own", "other"),
    [
        (Codi, {"projector": True, "projector_hidden_size": 24, "projector_dropout": 0.25}, [False, 16, 0.0]),
        (Colar, {"latent_intermediate_size": 24}, [16]),
    ],
)
def test_what_describes_fresh_parts_is_that_of_the_checkpoint_or_refused(kind, own, other, tiny_backbone, tmp_path):
    tiny_backbone(kind.kind, "llama", **own).save_pretrained(tmp_path)
    assert own.items() <= load_for_training(kind, tmp_path, config=own).extra_config().items()
    for field, value in zip(own, other, strict=True):
        with pytest.raises(UserError, match=f"with modules of {field} {own[field]}, .* {field} {value} is for a plain"):
            load_for_training(kind, tmp_path, config={field: value})


def test_a_seed_decides_the_fresh_projector_and_another_kind_is_refused(model, tiny_backbone, tmp_path):
    first, again, other = (load_for_training(Codi, model, seed=seed).projector[1].weight for seed in (3, 3, 4))  # type: ignore[index]
    assert torch.equal(first, again) and not torch.equal(first, other)
    tiny_backbone("colar", "llama").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds a colar checkpoint"):
        load_for_training(Codi, tmp_path)


def test_projector_dropout_is_there_in_training_only(model):
    module = make_codi(model, projector_dropout=0.5)
    hidden = torch.randn(4, module.backbone.hidden_size)
    torch.manual_seed(0)
    assert not torch.equal(module.backbone.next_latent(hidden), module.backbone.next_latent(hidden))
    module.eval()
    assert torch.equal(module.backbone.next_latent(hidden), module.backbone.next_latent(hidden))


def test_distillation_sets_in_over_its_warm_up(model, tmp_path):
    """16 examples, 4 a step: 4 steps, of which half are warm-up. The weight is 0, 1/2, 1, 1 times the full one."""
    shares = []

    class Spy(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            shares.append(pl_module.distillation_share())

    module = make_codi(model, distillation=Distillation(warmup=0.5), global_batch_size=4)
    trained(module, tmp_path, 4, epochs=1, callbacks=[Spy()])
    assert shares == [0.0, 0.5, 1.0, 1.0]
    with pytest.raises(UserError, match="distillation.warmup"):
        Distillation(warmup=2.0)


def test_a_few_epochs_teach_a_codi_its_training_data(model, tmp_path):
    data = make_data(tmp_path, 8)
    module = make_codi(model, forms=DistillationForms(answer="### {answer}"), max_answer_tokens=8)
    make_trainer(max_epochs=80, limit_val_batches=0).fit(module, data)
    seen = type(data)(data.train, data.train, batch_size=8)  # type: ignore[arg-type]
    (result,) = make_trainer().validate(module, seen, verbose=False)
    assert result["val/accuracy"] > 0.5
