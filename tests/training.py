"""What the training tests share: a scratch model of a few thousand weights, its data, and a quiet trainer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from datamodules.reasoning_steps_data import ReasoningStepsDataModule
from latent_tts.backbones.scratch import ScratchConfig, write_scratch_model
from latent_tts.engine.engine import RolloutEngine
from latent_tts.problems import ReasoningExample
from latent_tts.training.coconut_curriculum import Curriculum
from latent_tts.training.optimization import Optimization
from lightning_modules.backbone_module import BackboneModule
from lightning_modules.chain_of_thought_module import ChainOfThoughtModule
from lightning_modules.coconut_module import CoconutModule
from lightning_modules.codi_module import CodiModule

ONE_EPOCH_A_STAGE = Curriculum(cot_epochs=1, epochs_per_stage=1, latent_stages=2, latents_per_step=1)


def addition(i: int) -> ReasoningExample:
    """A problem of two steps; the questions, and so the batches, have rows of different lengths."""
    a, b, c = i % 7, i % 5 + 1, 10 ** (i % 4)
    question = f"Ann has {a} apples" + " and a pear" * (i % 3) + f", buys {b} and then {c}. How many apples?"
    return ReasoningExample(question, (f"<<{a}+{b}={a + b}>>", f"<<{a + b}+{c}={a + b + c}>>"), str(a + b + c))


def write_examples(path: Path, numbers: range) -> Path:
    rows = [addition(i) for i in numbers]
    lines = [json.dumps({"question": r.question, "steps": list(r.steps), "answer": r.answer}) for r in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_tiny_model(folder: Path, **config: Any) -> Path:
    shape = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_positions": 128, "vocab_size": 300} | config
    write_scratch_model(folder, ScratchConfig(**shape), map(addition, range(40)))
    return folder


def make_data(folder: Path, batch_size: int, val_size: int | None = None) -> ReasoningStepsDataModule:
    """16 training examples and 8 or `val_size` for validation, from files in `folder`."""
    train, val = folder / "train.jsonl", folder / "val.jsonl"
    if not val.exists():
        write_examples(train, range(16))
        write_examples(val, range(100, 108))
    return ReasoningStepsDataModule(str(train), str(val), batch_size=batch_size, val_size=val_size, pool_batches=1)


def with_optimization(options: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """Options of a module; those of its optimization are given beside the others."""
    names = {field.name for field in fields(Optimization)}
    merged = {"lr": 1e-2} | defaults | options
    optimization = Optimization(**{name: value for name, value in merged.items() if name in names})
    return {"optimization": optimization} | {name: value for name, value in merged.items() if name not in names}


def make_module(model: Path, **options: Any) -> CoconutModule:
    defaults = {"curriculum": ONE_EPOCH_A_STAGE, "global_batch_size": 8, "max_answer_tokens": 4, "reset": "stage"}
    return CoconutModule(str(model), **with_optimization(options, **defaults))


def make_codi(model: Path, **options: Any) -> CodiModule:
    defaults = {"num_latents": 2, "global_batch_size": 8, "max_answer_tokens": 6, "warmup_steps": 2}
    return CodiModule(str(model), **with_optimization(options, **defaults))


def make_cot(model: Path, **options: Any) -> ChainOfThoughtModule:
    defaults = {"global_batch_size": 8, "max_answer_tokens": 6, "warmup_steps": 2}
    return ChainOfThoughtModule(str(model), **with_optimization(options, **defaults))


MAKERS: dict[str, Callable[..., BackboneModule]] = {"coconut": make_module, "codi": make_codi, "cot": make_cot}


def reward_first_thoughts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards that an untrained model gets about half of the time: whether its first thought has a positive mean."""
    original = RolloutEngine.rollout

    def rollout(engine: RolloutEngine, *args: Any, **kwargs: Any) -> Any:
        rollouts = original(engine, *args, **kwargs)
        rollouts.answers = (rollouts.latents[:, :, 0].mean(-1) > 0).float().tolist()
        return rollouts

    monkeypatch.setattr(RolloutEngine, "rollout", rollout)
    monkeypatch.setattr("lightning_modules.colar_grpo_module.answers_equal", lambda answer, _: answer == 1.0)


def flat_weights(module: BackboneModule) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.backbone.parameters()])


def flat_gradients(module: BackboneModule) -> Tensor:
    """Those of the last optimizer step, which stay until the next batch."""
    return torch.cat([p.grad.flatten() for p in module.backbone.parameters() if p.grad is not None])


class StopAfter(Callback):
    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def make_trainer(**options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }
    return Trainer(**(defaults | options))
