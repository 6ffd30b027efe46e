"""Shipped recipes at the size of a test: their own options, on a model of a few thousand weights and files of a few rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import train
from commands.guard import main_guard
from commands.train import CONFIGS
from tests.training import write_examples, write_tiny_model

SMALL_TRAINER = {"accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": "32-true"}


def workplace(folder: Path) -> Path:
    """A folder with a causal LM, and examples to train and to validate on."""
    write_tiny_model(folder / "base", max_positions=256)
    write_examples(folder / "train.jsonl", range(32))
    write_examples(folder / "val.jsonl", range(100, 104))
    return folder


def arguments(
    folder: Path, *names: str, output: str | None = "run", backbone: Path | None = None, **more: Any
) -> list[str]:
    """The words after `train.py` that train a recipe (with what is laid over it) in `folder/output`: 2 steps an epoch.

    Args:
        folder: A `workplace`.
        names: Of files in configs/train, later ones win.
        output: Name of the run's folder; None leaves it to the command.
        backbone: What to start from; by default the workplace's causal LM.
        more: Sections of YAML with further options, each merged with what is there.
    """
    data = {"train": str(folder / "train.jsonl"), "val": str(folder / "val.jsonl"), "batch_size": 8}
    data |= {"train_size": None, "val_size": None, "templates": None, "exclude": []}
    model = {"backbone": str(backbone or folder / "base"), "global_batch_size": 16, "max_answer_tokens": 8}
    overlay: dict[str, Any] = {
        "trainer": SMALL_TRAINER
        | {"enable_progress_bar": False, "check_val_every_n_epoch": 1}
        | more.get("trainer", {}),
        "model": {"init_args": model | more.get("model", {})},
        "data": {"init_args": data | more.get("data", {})},
        "export": more.get("export", {}),
    }
    file = folder / f"{'-'.join(names)}.overlay.yaml"
    file.write_text(yaml.safe_dump(overlay))
    files = [*(CONFIGS / f"{name}.yaml" for name in names), file]
    words = ["fit", *(part for path in files for part in ("--config", str(path)))]
    return [*words, "--output", str(folder / output)] if output else words


def run(*words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of `python train.py WORDS`."""
    monkeypatch.setattr("sys.argv", ["train.py", *words])
    return main_guard(train.main)
