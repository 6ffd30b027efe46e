"""Every training on every device: losses, metrics and weights of whole fits are those of the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy

from datamodules.annotated_rollout_data import AnnotatedRolloutDataModule
from latent_tts.sampling import NativeGaussian
from latent_tts.training.coconut_curriculum import Curriculum
from latent_tts.training.colar import ColarLoss
from latent_tts.training.grpo import GRPO
from latent_tts.training.optimization import Optimization
from lightning_modules.colar_grpo_module import ColarGRPOModule
from lightning_modules.colar_module import ColarModule
from lightning_modules.latent_rm_module import LatentRMModule
from tests.devices.conftest import Place
from tests.test_latent_rm_module import annotate, settings_of
from tests.test_reward import tiny_backbone as backbone_to_score
from tests.training import make_codi, make_cot, make_data, make_module, make_trainer, write_tiny_model

FORM = "{question} ({speed})###"
FEW = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "gradient_clip_val": 1.0}
LATENTS = Curriculum(cot_epochs=1, epochs_per_stage=1, latent_stages=2, latents_per_step=1, first_epoch=2)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A causal LM, a CoLaR that predicts a deviation, and a backbone with its annotations."""
    folder = tmp_path_factory.mktemp("devices")
    write_tiny_model(folder / "model")
    supervised(folder / "model").export(folder / "colar")
    backbone = backbone_to_score("llama")
    backbone.save_pretrained(folder / "backbone")
    annotate(folder / "annotations", settings_of(backbone), problems=24)
    return folder


@pytest.fixture(autouse=True)
def rewarding(monkeypatch):
    """Some rollouts of an untrained model are right."""
    monkeypatch.setattr("lightning_modules.colar_grpo_module.answers_equal", lambda answer, gold: answer is None)
    monkeypatch.setattr("latent_tts.engine.rollouts.parse_answer", lambda text: None if text < "M" else 1.0)


def supervised(model: Path) -> ColarModule:
    return ColarModule(
        str(model),
        compression=[1, 2],
        prompt_form=FORM,
        thinking_speed=2,
        max_latents=4,
        loss=ColarLoss("nll"),
        optimization=Optimization(lr=5e-3),
        global_batch_size=4,
        max_answer_tokens=4,
    )


def grpo(folder: Path) -> ColarGRPOModule:
    return ColarGRPOModule(
        str(folder / "colar"),
        sampler=NativeGaussian(),
        grpo=GRPO(4, kl_weight=0.1),
        optimization=Optimization(lr=5e-3),
        global_batch_size=4,
        max_answer_tokens=3,
    )


def latent_rm(folder: Path, **options: Any) -> LatentRMModule:
    options |= {"optimization": Optimization(lr=3e-3), "global_batch_size": 4}
    return LatentRMModule(str(folder / "backbone"), **options)


TRAININGS: dict[str, Any] = {
    "coconut": lambda folder: make_module(folder / "model", curriculum=LATENTS, global_batch_size=4),
    "codi": lambda folder: make_codi(folder / "model", global_batch_size=4),
    "colar": lambda folder: supervised(folder / "model"),
    "cot": lambda folder: make_cot(folder / "model", global_batch_size=4),
    "grpo": grpo,
    "latent-rm": latent_rm,
    "latent-rm-bce": lambda folder: latent_rm(folder, loss="bce", head="mlp"),
}


class AnyDevice(CPUAccelerator):
    """Lightning's, which has nothing to ask of a device."""

    def setup_device(self, device: torch.device) -> None: ...


def fit(name: str, folder: Path, place: Place) -> tuple[LightningModule, dict[str, float]]:
    """A trained module, and all that it logged last."""
    module = TRAININGS[name](folder)
    data: Any = (
        AnnotatedRolloutDataModule(str(folder / "annotations"), batch_size=4, val_share=0.25)
        if name.startswith("latent-rm")
        else make_data(folder, batch_size=4, val_size=4)
    )
    trainer: Trainer = make_trainer(accelerator=AnyDevice(), strategy=SingleDeviceStrategy(place.device), **FEW)
    trainer.fit(module, data)
    return module, {key: float(value) for key, value in trainer.callback_metrics.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_learns_what_it_learns_on_the_host(name, workplace, place):
    host, wanted = fit(name, workplace, Place(torch.device("cpu")))
    module, found = fit(name, workplace, place)
    assert {key: value for key, value in found.items() if value == value} == pytest.approx(wanted, rel=1e-2, abs=1e-3)
    before = TRAININGS[name](workplace).state_dict()
    moved = False
    for (key, one), other in zip(module.state_dict().items(), host.state_dict().values(), strict=True):
        if name == "latent-rm" and key.endswith("classifier.bias"):
            continue  # a softmax over rollouts has no gradient for what all of them share: AdamW divides rounding by rounding
        torch.testing.assert_close(one.cpu(), other, rtol=1e-3, atol=1e-4)
        moved |= not torch.equal(before[key], other)
    assert moved
