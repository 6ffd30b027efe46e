"""CoLaR from the command line: the shipped recipes at the size of a test, one stage after the other, and the shipped demo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import train
from commands.evaluate import CONFIGS as EVALUATE
from commands.evaluate import EvaluationCLI
from commands.guard import main_guard
from commands.train import CONFIGS
from latent_tts.backbones.loading import load_backbone
from tests.training import write_examples, write_tiny_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("colar")
    write_tiny_model(folder / "model", max_positions=256)
    write_examples(folder / "train.jsonl", range(32))
    write_examples(folder / "val.jsonl", range(100, 104))
    return folder


def arguments(folder: Path, configs: list[str], backbone: Path, export: Path) -> list[str]:
    """Command line of a recipe for an epoch of two steps from a tiny model."""
    kept = {"dirpath": str(folder / "kept" / configs[-1]), "filename": "last", "save_on_train_epoch_end": True}
    overlay = {
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "default_root_dir": str(folder / "run"),
            "enable_progress_bar": False,
            "logger": False,
            "callbacks": [
                {"class_path": "ModelCheckpoint", "init_args": kept},
                {"class_path": "callbacks.export.ExportModel", "init_args": {"folder": str(export)}},
            ],
        },
        "model": {"init_args": {"backbone": str(backbone), "global_batch_size": 16}},
        "data": {
            "init_args": {
                "train": str(folder / "train.jsonl"),
                "val": str(folder / "val.jsonl"),
                "batch_size": 16,
                "train_size": None,
                "val_size": None,
                "templates": None,
            }
        },
    }
    file = folder / "overlay.yaml"
    file.write_text(yaml.safe_dump(overlay))
    files = [*(CONFIGS / config for config in configs), file]
    return ["train.py", "fit", *(part for f in files for part in ("--config", str(f)))]


def fit(folder: Path, configs: list[str], backbone: Path, monkeypatch) -> Path:
    """Runs a recipe in this process; the folder it exports."""
    export = folder / "export" / configs[-1]
    monkeypatch.setattr("sys.argv", arguments(folder, configs, backbone, export))
    assert main_guard(train.main) == 0
    return export


def test_both_tiny_recipes_run_one_after_the_other_and_export_models_that_load(folder, monkeypatch):
    first = fit(folder, ["tiny-colar.yaml"], folder / "model", monkeypatch)
    second = fit(folder, ["tiny-colar-grpo.yaml"], first, monkeypatch)
    for export in (first, second):
        backbone = load_backbone(export)
        assert (backbone.kind, backbone.num_latents, backbone.prompt_form) == ("colar", 40, "{question}\n2###")
        assert backbone.lt_head.log_std is not None


def test_the_published_recipe_runs_from_any_causal_lm_and_exports_its_layout(folder, monkeypatch):
    export = fit(folder, ["colar-llama-1b.yaml"], folder / "model", monkeypatch)
    backbone = load_backbone(export)
    assert backbone.prompt("1+1?") == "Question: 1+1? Let's think step by step:(Thinking speed: 2)###"
    assert backbone.num_latents == 64
    config = json.loads((export / "config.json").read_text())
    assert config["latent_embedding_std"] > 0 and config["latent_log_std"] is True


def test_two_processes_train_as_one_does(folder, tmp_path):
    """All 32 examples in one step, 32 at once or 16 in each of two processes, for both stages; the first step of Adam turns the
    rounding of a gradient of nothing into a step of the learning rate, so a few weights may differ."""
    start, stages = folder / "model", (["tiny-colar.yaml"], ["tiny-colar-grpo.yaml"])
    for configs in stages:
        weights = []
        for processes in (1, 2):
            export = tmp_path / configs[-1] / str(processes)
            flags = [
                "--model.global_batch_size=32",
                f"--data.batch_size={32 // processes}",
                "--model.optimization.warmup_steps=0",
            ]
            flags += [f"--trainer.devices={processes}", "--trainer.strategy=ddp", "--trainer.precision=32-true"]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            command = [sys.executable, *arguments(folder, configs, start, export), *flags]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            weights.append(torch.cat([p.flatten() for p in load_backbone(export).parameters()]))
        assert ((weights[0] - weights[1]).abs() < 1e-5).float().mean() > 0.95
        start = export
    before = torch.cat([p.flatten() for p in load_backbone(tmp_path / "tiny-colar.yaml" / "2").parameters()])
    assert not torch.equal(before, weights[1])


def test_the_demo_of_the_shipped_checkpoint_answers_problems(tmp_path):
    options = [
        f"--config={EVALUATE / 'demo' / 'tiny-colar.yaml'}",
        f"--model.backbone={ROOT / 'checkpoints/tiny-colar'}",
    ]
    options += ["--data.size=40", "--model.num_rollouts=4", "--trainer.accelerator=cpu"]
    assert main_guard(lambda: EvaluationCLI([*options, f"--output={tmp_path}"]).run()) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["num_problems"] == 40
    assert metrics["coverage"]["4"] >= metrics["accuracy"]["single"] > 0
    assert metrics["diversity"]["mean"] > 0
