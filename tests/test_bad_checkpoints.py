"""A checkpoint that is missing, cut off, of something else, a folder or a text: one sentence, exit code 2, nothing written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from commands.train import CONFIGS
from tests.test_bad_inputs import COMMANDS, tree

pytestmark = pytest.mark.slow

CHECKPOINTS = CONFIGS.parents[1] / "checkpoints"
COCONUT, REWARD = CHECKPOINTS / "tiny-coconut", CHECKPOINTS / "tiny-latent-rm"
FIT = [
    "fit",
    f"--config={CONFIGS / 'tiny-coconut.yaml'}",
    "--output=run",
    "--trainer.logger=false",
    "--data.train_size=4",
]
SMALL = ["--data.limit=2", "--output=run", "--model.num_rollouts=2"]

# what is wrong, and what the sentence about a backbone, a reward model and a training's checkpoint says
WRONG = {
    "missing": ("no folder 'missing'", "no folder 'missing'", "no checkpoint"),
    "text.ckpt": ("is a file", "is a file", "cannot be read as a checkpoint"),
    "empty": ("holds no config.json", "holds no config.json", "no checkpoint"),
    "no_weights": (".safetensors", "holds no .safetensors", "no checkpoint"),
    "cut": ("is the download complete?", "cannot be read as safetensors", "no checkpoint"),
    "text_weights": ("is the download complete?", "cannot be read as safetensors", "no checkpoint"),
    "bad_config": ("cannot be read as JSON", "cannot be read as JSON", "no checkpoint"),
    "list_config": ("must hold an object", "must hold an object", "no checkpoint"),
    "unknown_type": ("'nobodys'", "'nobodys'", "no checkpoint"),
    "no_tokenizer": ("holds no tokenizer", "holds no tokenizer", "no checkpoint"),
    "bad_tokenizer": ("tokenizer", "tokenizer", "no checkpoint"),
    "bad_metadata": ("cannot be read as JSON", "cannot be read as JSON", "no checkpoint"),
    "cut.ckpt": ("is a file", "is a file", "cannot be read as a checkpoint"),
    "other.ckpt": ("is a file", "is a file", "is a checkpoint of CodiModule"),
    "plain.ckpt": ("is a file", "is a file", "was not written by a training"),
}  # fmt: skip


def damage(folder: Path, name: str) -> None:
    """What each name of WRONG stands for, in a copy of a checkpoint."""
    weights = folder / "model.safetensors"
    if name == "no_tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    elif name == "no_weights":
        weights.unlink()
    elif name == "cut":
        weights.write_bytes(weights.read_bytes()[:100_000])
    elif name == "text_weights":
        weights.write_text("no weights")
    elif name == "bad_config":
        (folder / "config.json").write_text("{")
    elif name == "list_config":
        (folder / "config.json").write_text("[1]")
    elif name == "unknown_type":
        (folder / "config.json").write_text('{"model_type": "nobodys"}')
    elif name == "bad_tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    elif name == "bad_metadata":
        (folder / "latent_tts.json").write_text("{")


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "text.ckpt").write_text("no checkpoint")
    (folder / "empty").mkdir()
    torch.save({"training": {"module": "CodiModule"}, "state_dict": {}}, folder / "other.ckpt")
    (folder / "cut.ckpt").write_bytes((folder / "other.ckpt").read_bytes()[:300])
    torch.save({"state_dict": {}}, folder / "plain.ckpt")
    for name in WRONG:
        if "." not in name and name not in ("missing", "empty"):
            for kind, source in (("backbone", COCONUT), ("reward", REWARD)):
                shutil.copytree(source, folder / kind / name)
                damage(folder / kind / name, name)
    return folder


def place(wrong: Path, kind: str, name: str) -> str:
    copy = wrong / kind / name
    return str(copy) if copy.exists() else name


@pytest.fixture
def within(wrong: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(wrong)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return wrong


def assert_refused(command: str, args: list[str], part: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(folder)
    assert COMMANDS[command](args) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and part in error[0], error
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("command", "name"),
    [
        *(("evaluate", name) for name in WRONG),
        ("annotate", "cut"),
        *(("train", name) for name in WRONG if "." not in name and name != "bad_metadata"),  # its class says the kind
    ],
)
def test_a_backbone_that_is_none(command, name, within, capsys):
    backbone = f"--model.backbone={place(within, 'backbone', name)}"
    args = [*FIT, backbone] if command == "train" else [*SMALL, backbone]
    assert_refused(command, args, WRONG[name][0], within, capsys)


@pytest.mark.parametrize("name", [name for name in WRONG if "." not in name and "tokenizer" not in name])
def test_a_reward_model_that_is_none(name, within, capsys):
    args = [*SMALL, f"--model.backbone={COCONUT}", f"--model.reward_model={place(within, 'reward', name)}"]
    assert_refused("evaluate", args, WRONG[name][1], within, capsys)


@pytest.mark.parametrize("name", ["missing", "empty", *(name for name in WRONG if "." in name)])
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_training_s_checkpoint_that_is_none(command, name, within, capsys):
    args = [command, *FIT[1:], f"--model.backbone={COCONUT}", f"--ckpt_path={place(within, 'backbone', name)}"]
    elsewhere = command == "fit" and name == "other.ckpt"
    assert_refused("train", args, "goes on from those in" if elsewhere else WRONG[name][2], within, capsys)


def test_a_good_checkpoint_of_another_folder_is_not_gone_on_from(within, tmp_path, capsys):
    own = tmp_path / "other.ckpt"
    torch.save({"training": {"module": "CoconutModule"}, "state_dict": {}}, own)
    args = [*FIT, f"--model.backbone={COCONUT}", f"--ckpt_path={own}"]
    assert_refused("train", args, "is no checkpoint of this training", within, capsys)
