"""CoLaR from the command line: the shipped recipes at the size of a test, one stage after the other, and the shipped demo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands.evaluate import CONFIGS as EVALUATE
from commands.evaluate import EvaluationCLI
from commands.guard import main_guard
from latent_tts.backbones.loading import load_backbone
from tests.recipes import arguments, run, workplace

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return workplace(tmp_path_factory.mktemp("colar"))


def words(folder: Path, name: str, backbone: Path, output: str) -> list[str]:
    """A recipe for an epoch of two steps from a tiny model."""
    more = {"trainer": {"max_epochs": 1}, "data": {"batch_size": 16}, "model": {"max_answer_tokens": 12}}
    return arguments(folder, name, output=output, backbone=backbone, export={"dtype": "float32"}, **more)


def fit(folder: Path, name: str, backbone: Path, monkeypatch) -> Path:
    """Runs a recipe in this process; the folder it exports."""
    assert run(*words(folder, name, backbone, name), monkeypatch=monkeypatch) == 0
    return folder / name / "model"


def test_both_tiny_recipes_run_one_after_the_other_and_export_models_that_load(folder, monkeypatch):
    first = fit(folder, "tiny-colar", folder / "base", monkeypatch)
    second = fit(folder, "tiny-colar-grpo", first, monkeypatch)
    for export in (first, second):
        backbone = load_backbone(export)
        assert (backbone.kind, backbone.num_latents, backbone.prompt_form) == ("colar", 40, "{question}\n2###")
        assert backbone.lt_head.log_std is not None


def test_the_published_recipe_runs_from_any_causal_lm_and_exports_its_layout(folder, monkeypatch):
    export = fit(folder, "colar-llama-1b", folder / "base", monkeypatch)
    backbone = load_backbone(export)
    assert backbone.prompt("1+1?") == "Question: 1+1? Let's think step by step:(Thinking speed: 2)###"
    assert backbone.num_latents == 64
    config = json.loads((export / "config.json").read_text())
    assert config["latent_embedding_std"] > 0 and not config.get("latent_log_std")


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
