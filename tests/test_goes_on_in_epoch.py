"""A training that was stopped in the middle of an epoch goes on with the next batch, to bitwise the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning import LightningDataModule
from lightning.pytorch.callbacks import Callback

from callbacks.training_folder import KeepLast
from datamodules.annotated_rollout_data import AnnotatedRolloutDataModule
from datamodules.batching import LengthGroupedBatches
from latent_tts.backbones.loading import load_backbone
from latent_tts.sampling import NativeGaussian
from latent_tts.training.colar import ColarLoss
from latent_tts.training.grpo import GRPO
from lightning_modules.colar_grpo_module import ColarGRPOModule
from lightning_modules.colar_module import ColarModule
from lightning_modules.latent_rm_module import LatentRMModule
from lightning_modules.training_module import TrainingModule
from tests.test_latent_rm_module import annotate, settings_of
from tests.test_reward import tiny_backbone
from tests.training import (
    MAKERS,
    make_data,
    make_trainer,
    reward_first_thoughts,
    with_optimization,
    write_tiny_model,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("scratch") / "model")


def make_colar(model: Path, **options) -> ColarModule:
    defaults = {
        "global_batch_size": 8,
        "prompt_form": "{question} ({speed})###",
        "max_latents": 4,
        "loss": ColarLoss("nll"),
    }
    return ColarModule(str(model), **with_optimization(options, **defaults))


@pytest.fixture(scope="module")
def colar(tmp_path_factory) -> Path:
    """A CoLaR that has learned to think before it answers, with embeddings as large as those of a trained model."""
    folder = tmp_path_factory.mktemp("colar")
    backbone = load_backbone(write_tiny_model(folder / "scratch", hidden_size=32))
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight.mul_(15)  # type: ignore[operator]
    backbone.save_pretrained(folder / "scratch")
    module = make_colar(folder / "scratch", lr=5e-3)
    make_trainer(max_epochs=10, limit_val_batches=0).fit(module, make_data(folder, 8))
    module.export(folder / "model")
    return folder / "model"


KINDS = MAKERS | {"colar": make_colar}


class Killed(BaseException):
    pass


class Kill(Callback):
    """As a kill does it, before a micro batch of an epoch."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.place = (epoch, batch)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if (trainer.current_epoch, batch_idx) == self.place:
            raise Killed


class Batches(Callback):
    """The questions of every batch that was trained."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen.append(batch.questions if hasattr(batch, "questions") else [example.question for example in batch])


def weights(module: TrainingModule) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.trained.parameters()])


def assert_a_kill_within_an_epoch_changes_nothing(
    make: Callable[[], TrainingModule],
    data: Callable[[], LightningDataModule],
    file: Path,
    killed: tuple[int, int] = (1, 6),
    trained: int = 12,
) -> None:
    """16 examples, 2 in a micro batch and 4 of these in a step: killed in the second step of the second epoch of three.

    Args:
        make: Makes the module, always the same.
        data: Makes its data.
        file: Where the checkpoint goes.
        killed: Epoch and micro batch before which the run is killed.
        trained: Micro batches that the last checkpoint has behind it.
    """
    whole, first, second = Batches(), Batches(), Batches()
    straight, resumed = make(), make()
    start = weights(straight).clone()
    make_trainer(max_epochs=3, limit_val_batches=1, callbacks=[whole]).fit(straight, data())
    callbacks = [first, Kill(*killed), KeepLast(file, minutes=0.0)]
    trainer = make_trainer(max_epochs=3, limit_val_batches=1, callbacks=callbacks, enable_checkpointing=True)
    with pytest.raises(Killed):
        trainer.fit(make(), data())
    trainer = make_trainer(max_epochs=3, limit_val_batches=1, callbacks=[second])
    trainer.fit(resumed, data(), ckpt_path=file, weights_only=True)
    assert len(whole.seen) - len(second.seen) == trained
    assert first.seen[:trained] + second.seen == whole.seen
    assert not torch.equal(weights(straight), start)
    assert torch.equal(weights(resumed), weights(straight))


OPTIONS = {"schedule": "cosine", "warmup_steps": 2, "global_batch_size": 8}


# updates on a batch of rollouts, weight of the divergence, micro batch, where it is killed, what the checkpoint has behind it
REINFORCEMENTS = [(1, 0.0, 2, (1, 6), 12), (1, 0.1, 2, (1, 6), 12), (2, 0.1, 4, (1, 2), 5)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_within_an_epoch_changes_nothing(kind, model, tmp_path):
    assert_a_kill_within_an_epoch_changes_nothing(
        lambda: KINDS[kind](model, **OPTIONS), lambda: make_data(tmp_path, 2), tmp_path / "last.ckpt"
    )


@pytest.mark.parametrize(("updates", "kl_weight", "size", "place", "trained"), REINFORCEMENTS)
def test_a_kill_within_an_epoch_of_reinforcement_changes_nothing(
    updates, kl_weight, size, place, trained, colar, tmp_path, monkeypatch
):
    """Rollouts are drawn again as they were, and the reference is again the policy that the training began with."""
    reward_first_thoughts(monkeypatch)
    # without a decay, weights change by what rollouts teach alone
    options = with_optimization(OPTIONS, max_answer_tokens=4, weight_decay=0.0)
    options["global_batch_size"] = 8 if updates == 1 else size
    assert_a_kill_within_an_epoch_changes_nothing(
        lambda: ColarGRPOModule(str(colar), NativeGaussian(), GRPO(4, updates, kl_weight=kl_weight), **options),
        lambda: make_data(tmp_path, size),
        tmp_path / "last.ckpt",
        place,
        trained,
    )


@pytest.mark.parametrize("part", [{"head": "attention", "dropout": 0.3}, {"frozen": True, "head": "mlp"}])
def test_a_kill_within_an_epoch_of_a_reward_model_changes_nothing(part, tmp_path):
    backbone = tiny_backbone("gpt2")
    backbone.save_pretrained(tmp_path / "backbone")
    train = tmp_path / "train"
    annotate(train, settings_of(backbone), 18)  # two of which are all wrong, and left out
    options = with_optimization(OPTIONS | part)
    assert_a_kill_within_an_epoch_changes_nothing(
        lambda: LatentRMModule(str(tmp_path / "backbone"), **options),
        lambda: AnnotatedRolloutDataModule(str(train), val_share=0.0, batch_size=2),
        tmp_path / "last.ckpt",
    )


def test_an_epoch_entered_in_its_middle_is_the_rest_of_it_on_every_rank():
    for rank in range(2):
        whole = LengthGroupedBatches(40, lambda i: i % 7, 4, seed=3, rank=rank, world_size=2)
        whole.set_epoch(2)
        entered = LengthGroupedBatches(40, lambda i: i % 7, 4, seed=3, rank=rank, world_size=2)
        entered.enter_at(2, 3)
        assert list(entered) == list(whole)[3:]
        entered.set_epoch(3)
        whole.set_epoch(3)
        assert list(entered) == list(whole)
