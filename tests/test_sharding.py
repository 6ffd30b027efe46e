"""Trainings shared out over two processes (FSDP2, gloo): losses, gradient norms, metrics and exports are those of DDP."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from latent_tts.backbones import load_backbone
from latent_tts.backbones.lora import LoRA
from latent_tts.errors import UserError
from latent_tts.reward import load_reward_model
from lightning_modules.sharding import ShardedStrategy, shard
from tests.test_latent_rm_module import annotate, settings_of
from tests.test_reward import tiny_backbone as backbone_to_score
from tests.training import make_data, make_module, write_tiny_model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    folder = write_tiny_model(tmp_path_factory.mktemp("sharding") / "model")
    backbone = backbone_to_score("llama")
    backbone.save_pretrained(folder / "backbone")
    annotate(folder / "annotations", settings_of(backbone), problems=40)
    return folder


def trained(kind: str, strategy: str, model: Path, folder: Path) -> Path:
    words = [sys.executable, "-m", "tests.train_sharded", str(model), str(folder), kind, strategy]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / f"{kind}-{strategy}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["coconut", "latent-rm"])
def test_a_training_that_is_shared_out_is_the_training_of_ddp(kind, workplace, tmp_path):
    """Every epoch of the COCONUT has another number of passes; the last two epochs go on from a checkpoint."""
    make_data(tmp_path, 2)
    shared, whole = (trained(kind, strategy, workplace, tmp_path) for strategy in ("fsdp", "ddp"))
    for epochs in (2, 4):
        one, other = (torch.load(folder / f"{epochs}.pt") for folder in (shared, whole))
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-5) and len(one["losses"]) == 8
        # each process has its share of the squares under FSDP, all of them under DDP
        torch.testing.assert_close(one["squares"].sqrt(), (other["squares"] / 2).sqrt(), rtol=1e-5, atol=0)
        assert one["metrics"] == pytest.approx(other["metrics"], rel=1e-4)
    mine, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (shared, whole))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-6)
    if kind == "coconut":
        load_backbone(shared / "model")
    else:
        load_reward_model(shared / "model")


def test_what_cannot_be_shared_out_is_refused(workplace):
    adapters = make_module(workplace, lora=LoRA(r=2))
    options = {"accumulate_grad_batches": 1, "precision": "32-true", "strategy": ShardedStrategy()}
    trainer: Any = SimpleNamespace(**options)
    adapters._trainer = trainer
    with pytest.raises(UserError, match="fsdp does not fit CoconutModule as it is set: give ddp"):
        adapters.refuse_what_is_decided_here()
    frozen = load_backbone(workplace / "backbone").requires_grad_(False)
    with pytest.raises(UserError, match="some of this model's are frozen"):
        shard(frozen, None)
    with pytest.raises(UserError, match="finds no transformer blocks"):
        shard(torch.nn.Linear(2, 2), None)
