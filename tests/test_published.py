"""Recipes that call themselves published do what METHOD.md says of the public code: each value is read from the configs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule

from commands.train import CONFIGS
from latent_tts.training.coconut_curriculum import Curriculum
from latent_tts.training.codi import DEFAULT_DISTILLATION
from latent_tts.training.colar import ColarLoss, colar_losses, compression_factor
from lightning_modules.colar_module import ColarModule
from lightning_modules.trainings import TRAININGS
from tests.training import addition, write_tiny_model


def recipe(name: str) -> dict[str, Any]:
    """The recipe's trainer (over the defaults') and its module's options, under `trainer` and `model`."""
    defaults, own = (yaml.safe_load((CONFIGS / f"{file}.yaml").read_text()) for file in ("defaults", name))
    module: type[LightningModule] = TRAININGS[own["model"]["class_path"].rpartition(".")[2]]
    model = {"class": module.__name__, "batch_size": own["data"]["init_args"]["batch_size"]} | own["model"]["init_args"]
    return {"trainer": defaults["trainer"] | own["trainer"], "model": model, "data": own["data"]["init_args"]}


def check(options: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {name: options.get(name) for name in expected} == expected


@pytest.mark.parametrize("name", ["coconut-gpt2-written", "coconut-gpt2"])
def test_coconut_is_trained_in_float32_with_a_global_batch_of_128(name):
    found = recipe(name)
    check(found["trainer"], {"precision": "32-true"})
    check(found["model"], {"global_batch_size": 128})
    check(found["model"]["optimization"], {"lr": 1e-4, "weight_decay": 0.01})


def test_coconut_writes_for_25_epochs_without_markers_and_the_best_goes_on_at_epoch_3_to_25_in_all():
    written, latent = recipe("coconut-gpt2-written"), recipe("coconut-gpt2")
    check(written["trainer"], {"max_epochs": 25})
    check(written["model"], {"class": "ChainOfThoughtModule", "backbone": "openai-community/gpt2"})
    assert "export" not in yaml.safe_load(
        (CONFIGS / "coconut-gpt2-written.yaml").read_text()
    )  # so the best is exported
    check(latent["model"], {"class": "CoconutModule", "backbone": "runs/coconut-gpt2-written/model"})
    check(latent["model"]["optimization"], {"reset": "epoch"})
    curriculum = Curriculum(**latent["model"]["curriculum"])
    assert curriculum.first_epoch + latent["trainer"]["max_epochs"] == 25
    stages = [curriculum.stage(epoch) for epoch in range(latent["trainer"]["max_epochs"])]
    assert stages == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 13
    assert [curriculum.num_latents(stage) for stage in (1, 2, 3, 4)] == [2, 4, 6, 6]


def test_codi():
    found = recipe("codi-gpt2")
    check(found["trainer"], {"max_epochs": 40, "gradient_clip_val": 2.0})
    check(found["model"], {"class": "CodiModule", "global_batch_size": 128})
    check(found["model"]["lora"], {"r": 128, "alpha": 32})
    check(found["model"]["optimization"], {"lr": 3e-3, "warmup_share": 0.03, "schedule": "cosine"})
    check(found["model"]["distillation"], {"factor": 1.0, "embeddings": True, "deviation": "batch"})
    assert found["model"].get("num_latents", 6) == 6 and DEFAULT_DISTILLATION.embeddings
    assert not {"student_factor", "teacher_factor"} & set(found["model"])  # 1 each


def test_colar_and_its_reinforcement():
    found = recipe("colar-llama-1b")
    check(found["model"], {"class": "ColarModule", "global_batch_size": 256, "compression": [1, 2, 3, 4, 5]})
    check(found["model"]["loss"], {"weight": 1.0, "entropy_weight": 0.0, "mean": "own_terms"})
    assert found["model"]["loss"]["form"] in ("mse", "nll")
    check(found["model"]["lora"], {"r": 128, "alpha": 32})
    check(found["model"]["optimization"], {"lr": 1e-4})
    reinforced = recipe("colar-llama-1b-grpo")["model"]
    check(reinforced, {"class": "ColarGRPOModule", "backbone": "runs/colar-llama-1b/model"})
    check(reinforced["grpo"], {"group_size": 8, "clip": 0.2, "answers": {"temperature": 1.0, "top_p": 0.9}})


def test_latent_rm():
    found = recipe("latent-rm-published")
    check(found["trainer"], {"max_epochs": 30, "precision": "bf16-mixed", "gradient_clip_val": 1.0})
    check(found["model"], {"class": "LatentRMModule", "dropout": 0.0, "global_batch_size": 256})
    check(found["model"]["optimization"], {"lr": 1e-4, "warmup_share": 0.1, "schedule": "cosine"})
    assert TRAININGS["LatentRMModule"].monitor == "val/recall_at_1"


def test_the_loss_of_colar_is_a_mean_over_tokens_and_one_over_merged_embeddings(tmp_path, monkeypatch):
    """Both means by a loop over the examples one at a time, of a global batch as one micro batch."""
    model = write_tiny_model(tmp_path / "model")
    module = ColarModule(str(model), prompt_form="{question} ({speed})###", loss=ColarLoss("mse", weight=3.0))
    examples = [addition(i) for i in range(6)]
    trainer = type(
        "Alone", (), {"accumulate_grad_batches": 1, "num_training_batches": 1, "current_epoch": 0, "global_step": 0}
    )
    trainer.strategy = type("One", (), {"reduce": staticmethod(lambda tensor, reduce_op: tensor)})  # type: ignore[attr-defined]
    monkeypatch.setattr(ColarModule, "trainer", trainer)
    for name in ("current_epoch", "global_step"):
        monkeypatch.setattr(ColarModule, name, 0)
    monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
    module.eval()
    found, terms = module.summed_loss(examples)
    factor = compression_factor(module.compression, module.seed, 0, 0)
    alone = [colar_losses(module.backbone, module.compressed([e], factor), factor, "mse") for e in examples]
    tokens = [float(loss) for part in alone for loss in part.tokens]
    latents = [float(loss) for part in alone for loss in part.latents]
    expected = sum(tokens) / len(tokens) + 3.0 * sum(latents) / len(latents)
    torch.testing.assert_close(found / terms, torch.tensor(expected), atol=1e-4, rtol=1e-4)
