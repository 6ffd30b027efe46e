"""`train.py`: layered files, flags that win, one-sentence errors, and a run of the debug config from end to end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

import train
from commands.guard import main_guard
from commands.train import CONFIGS, TrainingCLI
from latent_tts.backbones.loading import load_backbone
from tests.training import write_examples, write_tiny_model

pytestmark = pytest.mark.slow

EXPERIMENTS = sorted(path.name for path in CONFIGS.glob("*.yaml"))


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of `python train.py ARGUMENTS`."""
    monkeypatch.setattr("sys.argv", ["train.py", *arguments])
    return main_guard(train.main)


def small_run(folder: Path, max_epochs: int = 5, recipe: str = "tiny-coconut") -> list[str]:
    """A tiny recipe on a model and a file in `folder`, one process; over that of tiny-coconut the debug config is laid."""
    if not (folder / "model").exists():
        write_tiny_model(folder / "model")
        write_examples(folder / "train.jsonl", range(32))
        write_examples(folder / "val.jsonl", range(100, 104))
    overlay = {
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "strategy": "auto",
            "precision": "32-true",
            "max_epochs": max_epochs,
            "default_root_dir": str(folder / "run"),
            "enable_progress_bar": False,
            "logger": {
                "class_path": "TensorBoardLogger",
                "init_args": {"save_dir": str(folder / "run"), "version": ""},
            },
            "callbacks": [
                {
                    "class_path": "ModelCheckpoint",
                    "init_args": {
                        "dirpath": str(folder / "kept"),
                        "filename": "last",
                        "save_on_train_epoch_end": True,
                        "enable_version_counter": False,
                    },
                },
                {"class_path": "callbacks.export.ExportModel", "init_args": {"folder": str(folder / "export")}},
            ],
        },
        "model": {"init_args": {"backbone": str(folder / "model"), "global_batch_size": 16}},
        "data": {
            "init_args": {"train": str(folder / "train.jsonl"), "val": str(folder / "val.jsonl"), "batch_size": 8}
        },
    }
    (folder / "overlay.yaml").write_text(yaml.safe_dump(overlay))
    debug = [CONFIGS / "debug.yaml"] if recipe == "tiny-coconut" else []
    files = [CONFIGS / f"{recipe}.yaml", *debug, folder / "overlay.yaml"]
    return ["fit", *(part for file in files for part in ("--config", str(file)))]


def test_debug_run_trains_every_stage_and_exports_a_model_that_loads(tmp_path, monkeypatch):
    assert run(*small_run(tmp_path), monkeypatch=monkeypatch) == 0
    assert load_backbone(tmp_path / "export").num_latents == 6
    checkpoint = torch.load(tmp_path / "kept" / "last.ckpt", weights_only=True)
    assert (checkpoint["epoch"], checkpoint["training"]["stage"]) == (4, 4)
    assert checkpoint["global_step"] == 5 * 2  # 32 examples in global batches of 16
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))
    assert list((tmp_path / "run").rglob("config.yaml"))


@pytest.mark.parametrize(("recipe", "kind"), [("tiny-codi", "codi"), ("tiny-cot", "cot")])
def test_a_few_steps_of_a_tiny_recipe_leave_a_model_that_loads_and_a_run_to_go_on_from(
    recipe, kind, tmp_path, monkeypatch
):
    arguments = small_run(tmp_path, max_epochs=1, recipe=recipe)
    assert run(*arguments, monkeypatch=monkeypatch) == 0
    assert load_backbone(tmp_path / "export").kind == kind
    last = str(tmp_path / "kept" / "last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 2  # 32 examples in global batches of 16
    again = [*arguments, "--trainer.max_epochs", "2", "--ckpt_path", last]
    assert run(*again, monkeypatch=monkeypatch) == 0
    assert torch.load(tmp_path / "kept" / "last.ckpt", weights_only=True)["global_step"] == 4


def test_flags_win_over_files_and_over_the_checkpoint(tmp_path, monkeypatch):
    arguments = small_run(tmp_path, max_epochs=1)
    assert run(*arguments, monkeypatch=monkeypatch) == 0
    last, seen = str(tmp_path / "kept" / "last.ckpt"), {}

    def stop_before_fit(self, subcommand):
        seen["module"], seen["epochs"] = self.model, self.trainer.max_epochs

    monkeypatch.setattr(TrainingCLI, "_run_subcommand", stop_before_fit)
    flags = [
        "--ckpt_path",
        last,
        "--model.optimization.lr",
        "0.5",
        "--model.curriculum.cot_epochs",
        "7",
        "--trainer.max_epochs",
        "3",
    ]
    assert run(*arguments, *flags, monkeypatch=monkeypatch) == 0
    assert (seen["module"].optimization.lr, seen["module"].curriculum.cot_epochs, seen["epochs"]) == (0.5, 7, 3)
    assert seen["module"].curriculum.epochs_per_stage == 1  # of the debug config, laid over the recipe
    assert seen["module"].optimization.betas == (0.9, 0.98)  # of the recipe


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in ("defaults.yaml", "debug.yaml")])
def test_every_shipped_config_parses(name):
    """An ablation of the reward model, and the second part of a training, are files to give after their base."""
    bases = {"latent-rm": "latent-rm-tiny", "tiny-coco": "tiny-coconut"}
    base_name = next((base for start, base in bases.items() if name.startswith(start)), None)
    base = ["--config", str(CONFIGS / f"{base_name}.yaml")] if base_name else []
    parser_only = ParserOnly(["fit", *base, "--config", str(CONFIGS / name)])
    config = parser_only.config.fit
    assert config.model.class_path.startswith("lightning_modules.")
    assert config.data.class_path.startswith("datamodules.")


class ParserOnly(TrainingCLI):
    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--model.optimization.lr", "fast"], "lr"),
        (["--model.no_such_option", "1"], "no_such_option"),
        (["--model.backbone", "nowhere/at/all"], "nowhere/at/all"),
        (["--data.batch_size", "5"], "global_batch_size 16"),
        (["--data.train", "missing.jsonl"], "missing.jsonl"),
        (["--model.curriculum.uniform_prob", "2"], "uniform_prob"),
        (["--config", "missing.yaml"], "missing.yaml"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, monkeypatch, capsys, flags, part):
    assert run(*small_run(tmp_path), *flags, monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert part in lines[0]
    assert "Traceback" not in error


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"]])
def test_help_explains_every_option_of_its_own(arguments, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit:
        run(*arguments, monkeypatch=monkeypatch)
    assert exit.value.code == 0
    text = capsys.readouterr().out
    assert "configs/train/defaults.yaml" in text


def test_help_of_the_module_describes_the_curriculum(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run("fit", "--model.help", "CoconutModule", monkeypatch=monkeypatch)
    text = " ".join(capsys.readouterr().out.split())
    assert "Epochs of plain chain-of-thought before the first latent stage." in text
    assert "Examples per optimizer step" in text


def test_only_fit_and_validate_are_offered():
    assert set(TrainingCLI.subcommands()) == {"fit", "validate"}
