"""CoLaR training: the split of a batch changes nothing, a resumed run equals one without a stop, the export what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from callbacks.export import ExportModel
from commands.export import export_run
from datamodules.reasoning_steps_data import ReasoningStepsDataModule
from latent_tts.backbones.loading import load_backbone
from latent_tts.backbones.lora import LoRA, merged
from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError
from latent_tts.sampling import AdditiveGaussianNoise, NativeGaussian
from latent_tts.training.colar import ColarLoss
from latent_tts.training.grpo import GRPO
from latent_tts.training.optimization import Optimization
from lightning_modules.colar_grpo_module import ColarGRPOModule
from lightning_modules.colar_module import ColarModule
from tests.training import addition, make_data, make_trainer, reward_first_thoughts, write_tiny_model

pytestmark = pytest.mark.slow

FORM = "{question} ({speed})###"
MODULES = ["supervised", "lora", "grpo", "grpo-two-updates"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A scratch model with embeddings as large as those of a trained one, or training would mostly make them grow."""
    folder = write_tiny_model(tmp_path_factory.mktemp("scratch") / "model", hidden_size=32)
    backbone = load_backbone(folder)
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight.mul_(15)  # type: ignore[operator]
    backbone.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def colar(model, tmp_path_factory) -> Path:
    """A CoLaR that was trained for a moment, to go on from."""
    folder = tmp_path_factory.mktemp("colar") / "model"
    make_trainer(max_epochs=30, limit_val_batches=0, callbacks=[ExportModel(str(folder))]).fit(
        supervised(model, optimization=Optimization(lr=1e-2)), make_data(folder.parent, 8)
    )
    return folder


@pytest.fixture
def rewarding(monkeypatch):
    reward_first_thoughts(monkeypatch)


def supervised(model: Path, **options) -> ColarModule:
    defaults: dict[str, Any] = {
        "compression": [1, 2, 3],
        "prompt_form": FORM,
        "max_latents": 8,
        "loss": ColarLoss("nll"),
        "global_batch_size": 8,
    }
    defaults |= {"optimization": Optimization(lr=5e-3, warmup_steps=2, schedule="linear"), "max_answer_tokens": 4}
    return ColarModule(str(model), **(defaults | options))


def grpo(colar: Path, **options) -> ColarGRPOModule:
    defaults: dict[str, Any] = {
        "optimization": Optimization(lr=5e-3),
        "global_batch_size": 8,
        "max_answer_tokens": 4,
        "grpo": GRPO(4),
    }
    return ColarGRPOModule(str(colar), **(defaults | options))


def make(name: str, model: Path, colar: Path, **options):
    if name.startswith("grpo"):
        return grpo(colar, grpo=GRPO(4, 2 if "two" in name else 1), **options)
    return supervised(model, lora=LoRA(r=4, dropout=0.3) if name == "lora" else None, **options)


def flat_weights(module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.backbone.parameters()])


class StopAfter(Callback):
    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


@pytest.mark.parametrize("name", MODULES)
def test_resuming_at_an_epoch_gives_bitwise_the_same_weights(name, model, colar, tmp_path, rewarding):
    straight = make(name, model, colar)
    start = flat_weights(straight)
    make_trainer(max_epochs=3, limit_val_batches=0).fit(straight, make_data(tmp_path, 8))
    keep = ModelCheckpoint(tmp_path / "kept", save_last=True, save_top_k=0, save_on_train_epoch_end=True)
    stopped = make_trainer(max_epochs=3, limit_val_batches=0, callbacks=[keep, StopAfter(2)], enable_checkpointing=True)
    stopped.fit(make(name, model, colar), make_data(tmp_path, 8))
    resumed = make(name, model, colar)
    last = tmp_path / "kept" / "last.ckpt"
    make_trainer(max_epochs=3, limit_val_batches=0).fit(resumed, make_data(tmp_path, 8), ckpt_path=last)
    assert not torch.equal(flat_weights(straight), start)
    assert torch.equal(flat_weights(resumed), flat_weights(straight))


class FirstGradient(Callback):
    """The gradient that the first optimizer step was made with."""

    gradient: torch.Tensor | None = None

    def on_before_zero_grad(self, trainer, pl_module, optimizer) -> None:
        gradients = [p.grad.flatten().clone() for p in pl_module.parameters() if p.grad is not None]
        if gradients and self.gradient is None:
            self.gradient = torch.cat(gradients)


@pytest.mark.parametrize("name", ["supervised", "grpo"])
def test_splitting_the_global_batch_changes_nothing(name, model, colar, tmp_path, rewarding):
    """16 examples at once and 4 x 4 accumulated, with one factor for all of them; among the groups of a micro batch more or
    fewer, or none, are all right or all wrong."""
    gradients = []
    for batch_size in (16, 4):
        recorder = FirstGradient()
        module = make(name, model, colar, global_batch_size=16)
        make_trainer(max_epochs=2, limit_val_batches=0, callbacks=[recorder]).fit(
            module, make_data(tmp_path, batch_size)
        )
        gradients.append(recorder.gradient)
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_export_answers_as_the_trained_model(name, precision, model, colar, tmp_path, rewarding):
    module = make(name, model, colar)
    trainer = make_trainer(max_epochs=2, precision=precision, callbacks=[ExportModel(str(tmp_path / "export"))])
    trainer.fit(module, make_data(tmp_path, 8))
    assert trainer.callback_metrics["val/latents"] <= 8
    loaded, questions = load_backbone(tmp_path / "export"), [addition(i).question for i in range(6)]
    assert (loaded.kind, loaded.num_latents, loaded.prompt_form) == ("colar", 8, "{question} (2)###")
    table = load_backbone(model).model.get_input_embeddings().weight.detach()  # type: ignore[operator]
    assert loaded.latent_embedding_std == pytest.approx(float(table.std()))
    trained = merged(module.backbone).eval()
    for sampler in (None, NativeGaussian()):
        of_trained = RolloutEngine(trained, sampler, max_answer_tokens=6).rollout(questions, 2)
        of_loaded = RolloutEngine(loaded, sampler, max_answer_tokens=6).rollout(questions, 2)
        assert of_loaded.texts == of_trained.texts
        torch.testing.assert_close(of_loaded.latents, of_trained.latents, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_is_exported_as_the_run_would(model, tmp_path):
    keep = ModelCheckpoint(tmp_path / "kept", save_last=True, save_top_k=0, save_on_train_epoch_end=True)
    export = ExportModel(str(tmp_path / "export"))
    trainer = make_trainer(max_epochs=1, limit_val_batches=0, callbacks=[keep, export], enable_checkpointing=True)
    trainer.fit(supervised(model), make_data(tmp_path, 8))
    export_run(tmp_path / "kept" / "last.ckpt", tmp_path / "again")
    assert load_backbone(tmp_path / "again").fingerprint() == load_backbone(tmp_path / "export").fingerprint()


def test_a_few_epochs_teach_to_think_as_long_as_the_steps_and_to_answer(model, tmp_path):
    """Validated on its own training data at speed 2: it takes half as many thoughts as there are tokens in the steps."""
    data = make_data(tmp_path, 8)
    module = supervised(
        model,
        compression=[2],
        max_latents=24,
        max_answer_tokens=12,
        optimization=Optimization(lr=1e-2, schedule="linear"),
    )
    make_trainer(max_epochs=100, limit_val_batches=0).fit(module, data)
    seen = ReasoningStepsDataModule(data.train, data.train, batch_size=8)  # type: ignore[arg-type]
    (result,) = make_trainer().validate(module, seen, verbose=False)
    assert result["val/accuracy"] > 0.4
    assert {"val/loss", "val/latent_loss"} <= set(result) <= set(module.logged_metrics)
    lengths = [sum(map(len, module.backbone.encode([step + "\n" for step in addition(i).steps]))) for i in range(16)]
    assert result["val/latents"] == pytest.approx(sum(-(-length // 2) for length in lengths) / 16, abs=1.0)


def test_reinforcement_raises_the_reward(colar, tmp_path, rewarding):
    rewards: list[float] = []

    class Rewards(Callback):
        def on_train_batch_end(self, trainer, *_) -> None:
            rewards.append(float(trainer.callback_metrics["train/reward"]))

    module = grpo(colar, global_batch_size=16, grpo=GRPO(8), optimization=Optimization(lr=5e-3))
    make_trainer(max_epochs=12, limit_val_batches=0, callbacks=[Rewards()]).fit(module, make_data(tmp_path, 16))
    assert rewards[-1] > rewards[0] + 0.15


def test_rollouts_with_fixed_noise_train_any_head_and_a_divergence_keeps_it_close(model, tmp_path, rewarding):
    folder = tmp_path / "mse"
    make_trainer(max_epochs=30, limit_val_batches=0, callbacks=[ExportModel(str(folder))]).fit(
        supervised(model, loss=ColarLoss("mse"), optimization=Optimization(lr=1e-2)), make_data(tmp_path, 8)
    )
    moved = []
    for kl_weight in (0.0, 10.0):
        module = grpo(folder, sampler=AdditiveGaussianNoise(1.0), grpo=GRPO(4, 4, kl_weight=kl_weight))
        start = flat_weights(module)
        make_trainer(max_epochs=4, limit_val_batches=0).fit(module, make_data(tmp_path, 8))
        moved.append(float((flat_weights(module) - start).norm()))
    assert moved[0] > moved[1] > 0
    with pytest.raises(UserError, match="this colar checkpoint has none"):
        grpo(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compression": [0, 1]}, "factors of 1 or more"),
        ({"thinking_speed": 4}, "thinking_speed 4 is none of the trained factors"),
        ({"prompt_form": "{question}###"}, "must have the fields"),
    ],
)
def test_impossible_training_is_refused(options, message, model):
    with pytest.raises(UserError, match=message):
        supervised(model, **options)


def test_impossible_reinforcement_is_refused(model, colar, tmp_path):
    with pytest.raises(UserError, match="group_size of 2 or more"):
        GRPO(1)
    with pytest.raises(UserError, match="group_size 1000001"):
        GRPO(10**6 + 1)
    assert GRPO(10**6).group_size == 10**6
    with pytest.raises(UserError, match="needs the whole global batch at once"):
        make_trainer(max_epochs=1).fit(grpo(colar, grpo=GRPO(4, 2)), make_data(tmp_path, 4))
    make_trainer(max_epochs=1, limit_val_batches=0, callbacks=[ExportModel(str(tmp_path / "mse"))]).fit(
        supervised(model, loss=ColarLoss("mse")), make_data(tmp_path, 8)
    )
    with pytest.raises(UserError, match="trains: use mse"):
        supervised(tmp_path / "mse", loss=ColarLoss("nll"))
