"""A training that was stopped in the middle of an epoch goes on with the next batch, to bitwise the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from callbacks.training_folder import KeepLast
from datamodules.batching import LengthGroupedBatches
from latent_tts.training.colar import ColarLoss
from lightning_modules.colar_module import ColarModule
from tests.training import MAKERS, flat_weights, make_data, make_trainer, with_optimization, write_tiny_model

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
        self.seen.append([example.question for example in batch])


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_within_an_epoch_changes_nothing(kind, model, tmp_path):
    """16 examples, 2 in a micro batch and 4 of these in a step: killed in the second step of the second epoch of three."""
    options = {"schedule": "cosine", "warmup_steps": 2, "global_batch_size": 8}
    whole = Batches()
    straight = KINDS[kind](model, **options)
    make_trainer(max_epochs=3, limit_val_batches=1, callbacks=[whole]).fit(straight, make_data(tmp_path, 2))
    file = tmp_path / "last.ckpt"
    first, second = Batches(), Batches()
    trainer = make_trainer(
        max_epochs=3,
        limit_val_batches=1,
        callbacks=[first, Kill(1, 6), KeepLast(file, minutes=0.0)],
        enable_checkpointing=True,
    )
    with pytest.raises(Killed):
        trainer.fit(KINDS[kind](model, **options), make_data(tmp_path, 2))
    checkpoint = torch.load(file, weights_only=True)
    assert (checkpoint["global_step"], checkpoint["epoch"]) == (3, 1)
    resumed = KINDS[kind](model, **options)
    trainer = make_trainer(max_epochs=3, limit_val_batches=1, callbacks=[second])
    trainer.fit(resumed, make_data(tmp_path, 2), ckpt_path=file, weights_only=True)
    assert first.seen[:12] + second.seen == whole.seen  # 8 of the first epoch and 4 of the second
    assert torch.equal(flat_weights(resumed), flat_weights(straight))


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
