"""What the training tests share: a scratch model of a few thousand weights, its data, and a quiet trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from datamodules.reasoning_steps_data import ReasoningStepsDataModule
from latent_tts.backbones.scratch import ScratchConfig, write_scratch_model
from latent_tts.curriculum import Curriculum
from latent_tts.problems import ReasoningExample
from lightning_modules.coconut_module import CoconutModule

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


def make_module(model: Path, **options: Any) -> CoconutModule:
    defaults = {"curriculum": ONE_EPOCH_A_STAGE, "global_batch_size": 8, "lr": 1e-2, "max_answer_tokens": 4}
    return CoconutModule(str(model), **(defaults | options))


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
