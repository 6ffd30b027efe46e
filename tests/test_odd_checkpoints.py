"""A folder whose files are at odds with each other, or hold what nobody meant: one sentence from whatever reads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from latent_tts.backbones import Coconut, load_backbone
from latent_tts.backbones.causal_lm import load_causal_lm
from latent_tts.backbones.training import load_for_training
from latent_tts.errors import UserError
from latent_tts.reward.loading import load_reward_model
from latent_tts.reward.model import LatentRewardModel
from tests.families import tiny_model

Edit = Callable[[Path], object]
LOADERS: dict[str, Callable[[Path], Any]] = {
    "backbone": load_backbone,
    "causal LM": load_causal_lm,
    "reward model": load_reward_model,
}
ALL, EVALUATED = tuple(LOADERS), ("backbone", "reward model")


def merged(name: str, **fields: Any) -> Edit:
    """Fields laid over a JSON file, which is made where it is missing."""

    def edit(folder: Path) -> None:
        file = folder / name
        found = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(found | fields))

    return edit


def config(**fields: Any) -> Edit:
    return merged("config.json", **fields)


def written(name: str, text: str) -> Edit:
    return lambda folder: (folder / name).write_text(text)


def weights(change: Callable[[Tensor], Tensor], name: str = "model.safetensors") -> Edit:
    """A file of the same weights with one of them changed."""

    def edit(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        key = next(key for key in found if key.endswith("c_fc.weight"))
        save_file(found | {key: change(found[key])}, folder / name, {"format": "pt"})

    return edit


def sharded(*names: str, index: dict[str, str] | None = None, keep: bool = False) -> Edit:
    """The weights in two shards, of which those of `names` are there, with an index that names both."""

    def edit(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        keys = sorted(found)
        parts = {"model-00001-of-00002.safetensors": keys[:4], "model-00002-of-00002.safetensors": keys[4:]}
        for name in names:
            save_file({key: found[key] for key in parts.get(name, keys[:1])}, folder / name, {"format": "pt"})
        weight_map = {key: name for name, part in parts.items() for key in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index or weight_map}))
        if not keep:
            (folder / "model.safetensors").unlink()

    return edit


def no_stop_token(folder: Path) -> None:
    config(eos_token_id=[])(folder)
    written("tokenizer_config.json", "{}")(folder)


def larger_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer.json"
    found = json.loads(file.read_text())
    found["model"]["vocab"]["ZZ"] = 7000
    file.write_text(json.dumps(found))


ONE, TWO, THREE = (f"model-0000{i}-of-0000{max(i, 2)}.safetensors" for i in (1, 2, 3))

# What is odd, who reads it, and what the sentence holds.
ODD: dict[str, tuple[Edit, tuple[str, ...], str]] = {
    "weights as integers": (
        weights(lambda w: (w * 100).to(torch.int8)),
        ALL,
        "as int8: quantized weights are not read",
    ),
    "weights as truth values": (weights(lambda w: w > 0), ALL, "as bool: quantized weights are not read"),
    "weights as floats of a byte": (weights(lambda w: w.to(torch.float8_e4m3fn)), ALL, "as float8_e4m3fn: quantized"),
    "a quantization": (
        config(quantization_config={"quant_method": "gptq", "bits": 4}),
        ALL,
        "has a quantization_config",
    ),
    "an older copy beside": (
        weights(lambda w: w * 2, "model_old.safetensors"),
        ALL,
        "in model.safetensors and in model_old",
    ),
    "another model beside": (weights(lambda w: w * 2, "a.safetensors"), ALL, "so move one of them away"),
    "shards beside the whole": (sharded(ONE, TWO, keep=True), ALL, "which are meant is unknown"),
    "a shard that the index does not name": (sharded(ONE, TWO, THREE), ALL, f"in {ONE} and in {THREE}"),
    "a shard that is missing": (sharded(ONE), ALL, f"lacks {TWO}, which model.safetensors.index.json names"),
    "no positions": (config(n_positions=0), ALL, "gives the model 0 positions"),
    "negative positions": (config(n_positions=-1), ALL, "positions"),
    "a type of another kind": (config(n_layer="two"), ALL, "'n_layer' expected int, got str"),
    "a null": (config(n_embd=None), ALL, "'n_embd' expected int"),
    "heads that do not divide": (config(n_head=7), ALL, "No model can be made of"),
    "a stop token beyond the vocabulary": (
        config(eos_token_id=9999),
        ("backbone",),
        "end with token 9999, and its vocabulary",
    ),
    "a stop token below it": (
        config(eos_token_id=[0, -1]),
        ("backbone",),
        "By config.json, texts of this gpt2 model end with token -1",
    ),
    "no stop token": (no_stop_token, ("backbone",), "names an end-of-text token"),
    "a tokenizer's stop token of no row": (
        merged("tokenizer_config.json", eos_token="</never>"),
        EVALUATED,
        "has tokens up to number 260",
    ),
    "a tokenizer of a larger model": (
        larger_tokenizer,
        EVALUATED,
        "has tokens up to number 7000, and the model's embeddings have 260 rows",
    ),
    "stop tokens that are text": (
        merged("generation_config.json", eos_token_id="x"),
        ("backbone",),
        "By generation_config.json",
    ),
    "stop tokens of generation below 0": (
        merged("generation_config.json", eos_token_id=[0, -3]),
        ("backbone",),
        "end with token -3",
    ),
    "an empty generation config": (
        written("generation_config.json", ""),
        ("backbone", "causal LM"),
        "cannot be read as JSON",
    ),
    "a generation config that is a list": (
        written("generation_config.json", "[1]"),
        ("backbone", "causal LM"),
        "must hold an object",
    ),
    "a kind that is a list": (
        merged("latent_tts.json", kind=["coconut"]),
        EVALUATED,
        "gives kind as ['coconut']: it must be a name",
    ),
    "a kind that is nobody's": (merged("latent_tts.json", kind="mine"), EVALUATED, "'mine'"),
    "latents as text": (merged("latent_tts.json", num_latents="six"), EVALUATED, "gives num_latents as 'six'"),
    "half a latent": (merged("latent_tts.json", num_latents=2.5), EVALUATED, "it must be a whole number"),
    "a truth as a number of latents": (
        merged("latent_tts.json", num_latents=True),
        EVALUATED,
        "gives num_latents as True",
    ),
    "a form without its question": (
        merged("latent_tts.json", prompt_form="hello"),
        EVALUATED,
        "has no {question} to be filled in",
    ),
    "an empty form": (merged("latent_tts.json", prompt_form=""), EVALUATED, "has no {question}"),
    "a form that is a number": (merged("latent_tts.json", prompt_form=5), EVALUATED, "it must be text"),
    "a field that nobody knows": (merged("latent_tts.json", numlatents=3), EVALUATED, "has the field 'numlatents'"),
    "no answer whether it is frozen": (
        merged("latent_tts.json", frozen="no"),
        ("reward model",),
        "it must be true or false",
    ),
}


@pytest.fixture(scope="module")
def sound(tiny_backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    backbone = tiny_backbone("coconut", "gpt2")
    backbone.save_pretrained(folder / "backbone")
    LatentRewardModel.from_backbone(backbone).save_pretrained(folder / "reward model")
    shutil.copytree(folder / "backbone", folder / "causal LM")
    return folder


@pytest.mark.parametrize(
    ("name", "loader"), [(name, loader) for name, (_, loaders, _) in ODD.items() for loader in loaders]
)
def test_it_is_refused_in_one_sentence(name, loader, sound, tmp_path, capfd):
    folder = Path(shutil.copytree(sound / loader, tmp_path / "odd"))
    edit, _, part = ODD[name]
    edit(folder)
    with pytest.raises(UserError) as refusal:
        LOADERS[loader](folder)
    sentence = str(refusal.value)
    assert part in sentence and "\n" not in sentence and len(sentence) < 600
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("loader", LOADERS)
def test_files_of_other_programs_and_precisions_are_none_of_the_weights(loader, sound, tmp_path):
    folder = Path(shutil.copytree(sound / loader, tmp_path / "folder"))
    for name in ("consolidated.safetensors", "model.fp16.safetensors"):
        weights(lambda w: w * 2, name)(folder)
    plain, found = (LOADERS[loader](place).state_dict() for place in (sound / loader, folder))
    assert all(torch.equal(found[key], plain[key]) for key in plain)


def test_a_list_of_weights_ends_after_a_few(sound, tmp_path):
    folder = Path(shutil.copytree(sound / "backbone", tmp_path / "folder"))
    config(n_layer=9)(folder)
    with pytest.raises(UserError, match=r"missing: (transformer\S+, ){5}transformer\S+ and 78 more\."):
        load_backbone(folder)


def test_weights_that_a_model_has_no_place_for_are_not_left_behind_by_a_training(sound, tmp_path):
    folder = Path(shutil.copytree(sound / "causal LM", tmp_path / "folder"))
    found = load_file(folder / "model.safetensors")
    save_file(found | {"v_head.weight": torch.ones(2)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="no place for: v_head.weight"):
        load_causal_lm(folder)


def test_a_training_goes_on_with_the_thoughts_and_the_prompt_of_its_checkpoint(tiny_backbone, tmp_path):
    backbone = tiny_backbone("coconut", "gpt2", num_latents=4)
    backbone.prompt_form = "Q: {question}<|start-latent|>"
    backbone.save_pretrained(tmp_path)
    again = load_for_training(Coconut, tmp_path)
    assert (again.num_latents, again.prompt_form) == (4, "Q: {question}<|start-latent|>")
    assert again.training and load_for_training(Coconut, tmp_path, num_latents=2).num_latents == 2


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("colar", "latent_embedding_std", "0.1"),
        ("colar", "latent_embedding_std", float("nan")),
        ("colar", "latent_embedding_std", -1.0),
        ("colar", "latent_intermediate_size", 2.5),
        ("codi", "projector_hidden_size", "wide"),
        ("codi", "projector_dropout", None),
    ],
)
def test_a_kind_s_own_numbers_are_numbers(kind, field, value, tiny_backbone, tmp_path):
    tiny_backbone(kind, "llama").save_pretrained(tmp_path)
    config(**{field: value})(tmp_path)
    with pytest.raises(UserError, match=f"config.json gives {field} as "):
        load_backbone(tmp_path)


def without_prefix(folder: Path) -> None:
    """As the hub's GPT-2: without the name of the model under its head, and with masks that are no weights."""
    found = {key.removeprefix("transformer."): value for key, value in load_file(folder / "model.safetensors").items()}
    save_file(found | {"h.0.attn.bias": torch.ones(1, 1, 8, 8)}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(("family", "edit"), [("mixtral", lambda folder: None), ("gpt2", without_prefix)])
def test_weights_under_the_names_of_another_layout_are_read_as_transformers_reads_them(
    family, edit, tiny_tokenizer, tmp_path
):
    """The reference is the model that was saved: experts one by one, or a transformer without its head's prefix."""
    model, tokenizer = tiny_model(family), tiny_tokenizer(())
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    edit(tmp_path)
    ids = torch.tensor([[5, 9, 40, 7]])
    with torch.no_grad():
        torch.testing.assert_close(load_backbone(tmp_path, kind="cot").model(ids).logits, model(ids).logits)
