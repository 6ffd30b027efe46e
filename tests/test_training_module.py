"""What every training refuses, and its options in a checkpoint: the module is made again from the file alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from latent_tts.backbones.lora import LoRA
from latent_tts.errors import UserError
from latent_tts.sampling import NativeGaussian
from latent_tts.training.grpo import GRPO
from latent_tts.training.optimization import Optimization
from lightning_modules.checkpoint_reading import read_checkpoint
from lightning_modules.coconut_module import CoconutModule
from lightning_modules.codi_module import CodiModule
from lightning_modules.colar_grpo_module import ColarGRPOModule
from lightning_modules.hyperparameters import restored
from tests.training import MAKERS, flat_weights, make_codi, make_data, make_module, make_trainer, write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("scratch") / "model")


def kept(module, folder: Path, **trainer) -> Path:
    """The checkpoint of one epoch."""
    keep = ModelCheckpoint(folder / "kept", save_last=True, save_top_k=0, save_on_train_epoch_end=True)
    options = {"max_epochs": 1, "limit_val_batches": 0, "enable_checkpointing": True, "callbacks": [keep]}
    make_trainer(**(options | trainer)).fit(module, make_data(folder, 8))
    return folder / "kept" / "last.ckpt"


@pytest.mark.parametrize("kind", MAKERS)
def test_a_checkpoint_makes_its_module_again(kind, model, tmp_path):
    module = MAKERS[kind](model, betas=(0.8, 0.9), lora=LoRA(r=4, target_modules=["q_proj"]), seed=3)
    again = type(module).load_from_checkpoint(kept(module, tmp_path))
    assert torch.equal(flat_weights(again), flat_weights(module))
    assert (again.optimization, again.lora, again.seed) == (module.optimization, module.lora, 3)
    assert again.hparams == module.hparams


def test_samplers_and_nested_dataclasses_survive_the_way_through_plain_data(tiny_backbone, tmp_path):
    tiny_backbone("colar", "llama", latent_log_std=True).save_pretrained(tmp_path)
    optimization = Optimization(betas=(0.5, 0.6))
    module = ColarGRPOModule(str(tmp_path), NativeGaussian(0.7), optimization=optimization, grpo=GRPO(3))
    given = restored(ColarGRPOModule, json.loads(json.dumps(dict(module.hparams))))
    assert repr(given["sampler"]) == repr(NativeGaussian(0.7))
    assert (tuple(given["optimization"].betas), given["grpo"]) == ((0.5, 0.6), GRPO(3))


def test_a_change_of_options_is_possible_on_loading(model, tmp_path):
    file = kept(make_module(model), tmp_path)
    changed = CoconutModule.load_from_checkpoint(file, optimization=Optimization(lr=0.5))
    assert changed.optimization == Optimization(lr=0.5)


def test_tensorboard_holds_the_options(model, tmp_path):
    logger = TensorBoardLogger(tmp_path, name="tb", version="")
    kept(make_codi(model), tmp_path, logger=logger)
    options = yaml.safe_load((tmp_path / "tb" / "hparams.yaml").read_text())
    assert options["optimization"]["lr"] == 1e-2 and options["forms"]["step"] == "{step}\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate_grad_batches": 4}, r"accumulate_grad_batches 4 .*model\.global_batch_size"),
        ({"precision": "64-true"}, "precision 64-true does not fit .* bf16-mixed"),
        ({"precision": "bf16-true"}, "precision bf16-true does not fit"),
        ({"overfit_batches": 2}, "overfit_batches"),
    ],
)
def test_what_a_training_decides_is_refused_not_overwritten(options, message, model, tmp_path):
    with pytest.raises(UserError, match=message):
        make_trainer(max_epochs=1, **options).fit(make_module(model), make_data(tmp_path, 8))


def test_the_same_trainer_may_fit_twice(model, tmp_path):
    trainer = make_trainer(max_epochs=1, limit_val_batches=0)
    for _ in range(2):
        trainer.fit(make_module(model), make_data(tmp_path, 2))
        assert trainer.accumulate_grad_batches == 1


def test_a_reset_with_stages_needs_stages(model, tmp_path):
    with pytest.raises(UserError, match="optimization.reset stage"):
        make_trainer(max_epochs=1).fit(make_codi(model, reset="stage"), make_data(tmp_path, 8))


def test_checkpoints_that_are_none_are_refused(model, tmp_path):
    file = kept(make_module(model), tmp_path)
    with pytest.raises(UserError, match="checkpoint of CoconutModule, not of CodiModule"):
        CodiModule.load_from_checkpoint(file)
    (tmp_path / "cut.ckpt").write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    torch.save({"weights": torch.ones(2)}, tmp_path / "other.ckpt")
    for name, message in (("cut.ckpt", "cut off"), ("other.ckpt", "not written by"), ("none.ckpt", "no checkpoint")):
        with pytest.raises(UserError, match=message):
            read_checkpoint(tmp_path / name)
