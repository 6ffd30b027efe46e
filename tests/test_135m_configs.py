"""The recipes of the 135M base at the size of a test: from a causal LM to written reasoning, and from there to latents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from commands.extract_adapters import extract_adapters
from commands.train import CONFIGS
from latent_tts.backbones.loading import load_backbone
from tests.recipes import arguments, run
from tests.training import write_examples, write_tiny_model

pytestmark = pytest.mark.slow

MASKED = """Question,Numbers,Equation,Answer
Dan has number0 pens and buys number1 more . How many pens does he have ?,12.0 7.0,+ number0 number1,19.0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("135m")
    write_tiny_model(folder / "base", max_positions=256)
    write_examples(folder / "train.jsonl", range(32))
    rows = [{"question": f"{i} and {i}?", "steps": [f"<<{i}+{i}={2 * i}>>"], "answer": str(2 * i)} for i in range(4)]
    (folder / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "masked.csv").write_text(MASKED)
    return folder


def fit(folder: Path, name: str, backbone: Path, monkeypatch, max_epochs: int = 1, **model: Any) -> Path:
    """Runs a recipe with its own mixture of sources, from small files, one optimizer step an epoch; the folder it exports."""
    mixture = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["data"]["init_args"]["train"]
    files = {"train.jsonl": folder / "train.jsonl", "train.csv": folder / "masked.csv"}
    small = {}
    for source, weight in mixture.items():
        prefix, path = "resampled:" * source.startswith("resampled:"), Path(source.removeprefix("resampled:"))
        small[f"{prefix}{files[path.name]}"] = weight
    assert len(small) == len(mixture) == 3
    data = {"train": small, "val_size": 2, "exclude": [str(folder / "val.jsonl")], "train_size": 16}
    output = f"{name}-{len(list(folder.iterdir()))}"
    words = arguments(
        folder, name, output=output, backbone=backbone, trainer={"max_epochs": max_epochs}, model=model, data=data
    )
    assert run(*words, monkeypatch=monkeypatch) == 0
    return folder / output / "model"


def test_written_reasoning_is_trained_first_and_every_latent_kind_starts_from_it(folder, monkeypatch):
    cot = fit(folder, "cot-135m", folder / "base", monkeypatch)
    assert load_backbone(cot).kind == "cot"
    for kind, latents, epochs in (("coconut", 6, 4), ("codi", 6, 1), ("colar", 64, 1)):
        backbone = load_backbone(fit(folder, f"{kind}-135m", cot, monkeypatch, epochs))
        assert (backbone.kind, backbone.num_latents) == (kind, latents)


def test_adapters_of_written_reasoning_are_extracted_trained_further_and_stored_alone(folder, monkeypatch):
    cot = fit(folder, "cot-135m", folder / "base", monkeypatch)
    extract_adapters(load_backbone(cot), str(folder / "base"), 4, folder / "extracted")
    lora = {"r": 4, "adapters": str(folder / "extracted")}
    out = fit(folder, "cot-135m-adapter", folder / "base", monkeypatch, lora=lora)
    assert not (out / "model.safetensors").exists()
    trained, extracted = (load_backbone(path).model.state_dict() for path in (out, folder / "extracted"))
    assert any(not torch.equal(value, extracted[key]) for key, value in trained.items())
    latent = load_backbone(fit(folder, "coconut-135m", out, monkeypatch))  # and latent kinds start from adapters too
    assert latent.kind == "coconut"


@pytest.mark.parametrize("name", ["cot-135m", "cot-135m-adapter", "coconut-135m", "codi-135m", "colar-135m"])
def test_every_recipe_keeps_all_evaluation_sets_out(name):
    data = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["data"]["init_args"]
    names = {"/".join(Path(file).parts[-2:]) for file in data["exclude"]}
    assert names == {"gsm8k/valid_steps.json", "gsm8k/test.jsonl", "gsm_hard/test.json", "multiarith/test.json"}
    assert data["val"] in data["exclude"]
