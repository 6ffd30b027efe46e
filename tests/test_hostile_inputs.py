"""Nothing from data or a checkpoint is imported, evaluated, or used as a path outside its folder: refused, or taken as text."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from commands.export import export_run
from commands.train import CONFIGS
from latent_tts.annotation.reader import AnnotationStore
from latent_tts.annotation.writer import AnnotationWriter, write_index
from latent_tts.backbones import load_backbone
from latent_tts.backbones.causal_lm import load_causal_lm
from latent_tts.backbones.files import load_tokenizer
from latent_tts.errors import UserError
from latent_tts.evaluation.latent_files import KeptLatents, LatentFiles
from latent_tts.reward import load_reward_model
from lightning_modules.checkpoint_reading import read_checkpoint
from tests.test_latent_rm_module import annotated, settings_of
from tests.test_reward import tiny_backbone

CHECKPOINTS = CONFIGS.parents[1] / "checkpoints"
LOADERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "backbone": ("tiny-coconut", load_backbone),
    "causal lm": ("tiny-coconut", load_causal_lm),
    "reward model": ("tiny-latent-rm", load_reward_model),
}
HOSTILE_IDS = ["../../out", "/etc/x", "a/b", "..", "", "x\n{}", "'; DROP", "</script><b>", "$(touch out)", "nul\0"]


@pytest.fixture
def nothing_runs(tmp_path: Path) -> Any:
    """The code that inputs bring would make this file."""
    yield tmp_path / "ran"
    assert not (tmp_path / "ran").exists()


def code(ran: Path) -> str:
    return f"open({str(ran)!r}, 'w')\n"


class Runs:
    """Unpickling it makes a file."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.ran),)


def one_sentence(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def copied(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(CHECKPOINTS / name, folder / "checkpoint"))


@pytest.mark.parametrize("beside", [False, True], ids=["elsewhere", "and beside"])
@pytest.mark.parametrize("shard", ["../out.safetensors", "ABSOLUTE", "x/../../out.safetensors", "out.bin", ".", 3])
@pytest.mark.parametrize("loader", LOADERS)
def test_a_checkpoint_s_index_names_nothing_outside_of_it(loader, shard, beside, tmp_path):
    name, load = LOADERS[loader]
    folder, out = copied(name, tmp_path), tmp_path / "out.safetensors"
    weights = load_file(folder / "model.safetensors")
    (shutil.copy if beside else shutil.move)(folder / "model.safetensors", out)
    named = str(out) if shard == "ABSOLUTE" else shard
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, named)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    sentence = one_sentence(lambda: load(folder))
    assert repr(str(named))[:60] in sentence and "no .safetensors file beside it" in sentence


@pytest.mark.parametrize("loader", LOADERS)
def test_an_index_of_shards_beside_it_is_read(loader, tmp_path):
    name, load = LOADERS[loader]
    folder, shard = copied(name, tmp_path), "model-00001-of-00001.safetensors"
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / shard)
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    straight, sharded = load(CHECKPOINTS / name).state_dict(), load(folder).state_dict()
    assert all(torch.equal(sharded[key], straight[key]) for key in straight)


@pytest.mark.parametrize("known", [True, False], ids=["known family", "unknown family"])
@pytest.mark.parametrize("loader", LOADERS)
def test_a_checkpoint_s_own_code_is_neither_run_nor_asked_about(loader, known, tmp_path, nothing_runs, monkeypatch):
    """A family that transformers has is read by its own class, any other is refused."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    name, load = LOADERS[loader]
    folder = copied(name, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    family = {} if known else {"model_type": "nobodys"}
    classes = {f"Auto{kind}": "own.Own" for kind in ("Config", "Model", "ModelForCausalLM")}
    (folder / "config.json").write_text(json.dumps(config | family | {"auto_map": classes}))
    (folder / "own.py").write_text(code(nothing_runs))
    if known:
        load(folder)
    else:
        assert "'nobodys'" in one_sentence(lambda: load(folder))


def test_a_tokenizer_s_own_code_is_neither_run_nor_asked_about(tmp_path, nothing_runs, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    described = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(described))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nobodys"}))
    (tmp_path / "own.py").write_text(code(nothing_runs))
    assert "holds no tokenizer" in one_sentence(lambda: load_tokenizer(tmp_path))


@pytest.mark.parametrize("loader", LOADERS)
def test_pickled_weights_are_not_read(loader, tmp_path, nothing_runs):
    name, load = LOADERS[loader]
    folder = copied(name, tmp_path)
    (folder / "model.safetensors").unlink()
    for file in ("pytorch_model.bin", "adapter_model.bin"):
        (folder / file).write_bytes(pickle.dumps(Runs(nothing_runs)))
    assert "safetensors" in one_sentence(lambda: load(folder))


@pytest.mark.parametrize("saved", [True, False], ids=["by torch", "plain"])
@pytest.mark.parametrize("read", [read_checkpoint, lambda file: export_run(file, file.parent / "out")])
def test_a_pickle_is_no_checkpoint_of_a_training(read, saved, tmp_path, nothing_runs):
    file, content = tmp_path / "last.ckpt", {"training": {"module": "CoconutModule"}, "state_dict": Runs(nothing_runs)}
    if saved:
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))
    assert "cannot be read as a checkpoint" in one_sentence(lambda: read(file))
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("module", ["os", "tests.test_hostile_inputs.Runs", "../own"])
def test_a_checkpoint_names_a_training_and_imports_nothing(module, tmp_path):
    torch.save({"training": {"module": module}, "hyper_parameters": {}, "state_dict": {}}, tmp_path / "last.ckpt")
    sentence = one_sentence(lambda: export_run(tmp_path / "last.ckpt", tmp_path / "out"))
    assert repr(module) in sentence and not (tmp_path / "out").exists()


def test_ids_of_problems_are_text_and_no_paths(tmp_path):
    """Annotations and kept latents of any id are written within their folder, and read back under it."""
    folder, problem = tmp_path / "a" / "b" / "annotations", annotated(1)
    with AnnotationWriter(folder, settings_of(tiny_backbone("gpt2"))) as writer:
        for name in HOSTILE_IDS:
            writer.add(replace(problem, problem_id=name))
    write_index(folder)
    assert {*AnnotationStore(folder).problem_ids} == {*HOSTILE_IDS}
    latents = KeptLatents(problem.latents, problem.num_latents)
    kept = LatentFiles(tmp_path / "a" / "b" / "run")
    for name in HOSTILE_IDS:
        kept.add(0, {name: latents})
    again = LatentFiles(tmp_path / "a" / "b" / "run")
    assert {*again.problem_ids} == {*HOSTILE_IDS}
    assert all(torch.equal(again.read(name).latents, problem.latents) for name in HOSTILE_IDS)
    assert [path.name for path in tmp_path.rglob("*") if path.parent in (tmp_path, *list(tmp_path.iterdir()))] == [
        "a",
        "b",
    ]


@pytest.mark.parametrize("name", ["../shard-00000-000000.parquet", "ABSOLUTE", "..", "shard-1/../../x.parquet"])
def test_an_index_of_annotations_names_nothing_outside_of_it(name, tmp_path):
    folder = tmp_path / "annotations"
    with AnnotationWriter(folder, settings_of(tiny_backbone("gpt2"))) as writer:
        writer.add(annotated(1))
    write_index(folder)
    shard = shutil.copy(next(folder.glob("shard-*.parquet")), tmp_path)
    named = str(shard) if name == "ABSOLUTE" else name
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | {"shards": {named: 1}}))
    assert named in one_sentence(lambda: AnnotationStore(folder))
