"""`train.py`: layered files, flags that win, one-sentence errors, and the folder that a training fills and goes on in."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from commands.export import main as export_main
from commands.train import CONFIGS, TrainingCLI
from commands.training_folder import default_folder
from latent_tts.backbones.loading import load_backbone
from tests.recipes import arguments, run, workplace

pytestmark = pytest.mark.slow

RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in ("defaults", "debug"))
# Ablations of the reward model are files to give after their base.
AFTER = {name: "latent-rm-tiny" for name in RECIPES if name.startswith("latent-rm") and name != "latent-rm-published"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return workplace(tmp_path_factory.mktemp("train"))


@pytest.fixture
def own(folder, tmp_path) -> Path:
    """A workplace for one test."""
    shutil.copytree(folder, tmp_path / "own")
    return tmp_path / "own"


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def last(folder: Path) -> dict:
    return torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)


# The folder -----------------------------------------------------------------------------------------------------------


def test_a_training_fills_its_folder_and_nothing_outside_of_it(own, monkeypatch, capsys):
    monkeypatch.chdir(own)
    before = contents(own)
    assert run(*arguments(own, "tiny-cot", trainer={"max_epochs": 1}), monkeypatch=monkeypatch) == 0
    made = set(contents(own)) - set(before) - {"tiny-cot.overlay.yaml"}
    assert {name.split("/")[0] for name in made} == {"run"}
    inside = {name.split("/")[1] for name in made}
    assert inside == {".lock", "config.yaml", "run.json", "checkpoints", "model", "tensorboard"}
    assert {"run/checkpoints/last.ckpt", "run/checkpoints/best.ckpt"} <= made
    printed = capsys.readouterr().out
    assert f"checkpoint {own}/run/checkpoints/last.ckpt, model {own}/run/model; next: python evaluate.py" in printed
    described = json.loads((own / "run" / "run.json").read_text())
    assert described["command"].startswith("train.py fit --config")
    assert (described["state"], described["num_processes"], described["precision"]) == ("finished", 1, "32-true")
    assert described["versions"]["torch"] == torch.__version__ and described["seconds"] > 0


def test_a_training_keeps_the_commit_of_its_model_and_goes_on_from_no_other(own, monkeypatch, capsys):
    """A hub whose newest commit moves between two runs of the command."""
    began, moved = "a" * 40, "b" * 40
    newest = began

    def download(name, revision, allow_patterns):
        folder = own / "snapshots" / (revision or newest)
        shutil.copytree(own / "base", folder, dirs_exist_ok=True)
        return str(folder)

    def train(name: str) -> int:
        words = arguments(own, "tiny-cot", backbone=name, trainer={"max_epochs": 1})  # type: ignore[arg-type]
        return run(*words, monkeypatch=monkeypatch)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert train("somebody/base") == 0
    described = json.loads((own / "run" / "run.json").read_text())
    assert described["model_commits"] == {"backbone": began}
    # as a kill before its end leaves it
    (own / "run" / "run.json").write_text(json.dumps(described | {"state": "running"}))
    newest, before = moved, contents(own / "run")
    assert train("somebody/base") == 2
    assert f"give --model.backbone somebody/base@{began} to go on" in capsys.readouterr().err
    assert train(f"somebody/base@{moved}") == 2  # other settings
    assert contents(own / "run") == before
    assert train(f"somebody/base@{began}") == 0
    assert json.loads((own / "run" / "run.json").read_text())["state"] == "finished"
    assert train(f"somebody/base@{began}") == 0  # it is finished under this name, too


def test_the_same_command_goes_on_to_bitwise_the_same_weights_and_then_says_that_it_is_finished(
    own, monkeypatch, capsys
):
    words = arguments(own, "coconut-135m", trainer={"max_epochs": 4})
    assert run(*words, monkeypatch=monkeypatch) == 0
    straight = last(own)
    shutil.move(own / "run", own / "straight")

    class Killed(BaseException):
        pass

    def kill(self):
        if self.current_epoch == 2:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("lightning_modules.coconut_module.CoconutModule.on_train_epoch_end", kill, raising=False)
        with pytest.raises(Killed):
            run(*words, monkeypatch=patched)
    assert last(own)["epoch"] == 1 and json.loads((own / "run" / "run.json").read_text())["state"] == "running"
    assert run(*words, monkeypatch=monkeypatch) == 0
    resumed = last(own)
    assert resumed["global_step"] == straight["global_step"] == 4 * 2
    assert all(torch.equal(value, straight["state_dict"][key]) for key, value in resumed["state_dict"].items())
    before = contents(own / "run")
    capsys.readouterr()
    assert run(*words, monkeypatch=monkeypatch) == 0
    assert "is finished: checkpoint" in capsys.readouterr().out
    assert contents(own / "run") == before


def test_other_settings_are_refused_by_name_and_leave_the_folder_as_it_was(own, monkeypatch, capsys):
    words = arguments(own, "tiny-cot", trainer={"max_epochs": 1})
    assert run(*words, monkeypatch=monkeypatch) == 0
    before = contents(own / "run")
    assert run(*words, "--model.optimization.lr", "0.5", "--data.seed", "3", monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    assert "model.init_args.optimization.lr was 0.0015 and is 0.5 now" in error and "data.init_args.seed was 0" in error
    assert contents(own / "run") == before


def test_a_run_that_fails_at_once_leaves_an_earlier_one_as_it_was(own, monkeypatch):
    words = arguments(own, "tiny-cot", trainer={"max_epochs": 2})
    with monkeypatch.context() as patched:
        patched.setattr("lightning_modules.training_module.TrainingModule.on_train_start", fail, raising=False)
        with pytest.raises(RuntimeError):
            run(*words, monkeypatch=patched)
    assert run(*words, monkeypatch=monkeypatch) == 0
    kept = contents(own / "run" / "checkpoints")
    (own / "train.jsonl").rename(own / "gone.jsonl")
    assert run(*words, "--trainer.max_epochs", "3", monkeypatch=monkeypatch) == 2
    assert contents(own / "run" / "checkpoints") == kept


def fail(self) -> None:
    raise RuntimeError("on purpose")


def test_a_longer_training_goes_on_where_the_learning_rate_does_not_depend_on_the_length(own, monkeypatch, capsys):
    words = arguments(own, "coconut-gpt2", trainer={"max_epochs": 1})
    assert run(*words, monkeypatch=monkeypatch) == 0
    assert run(*words, "--trainer.max_epochs", "2", monkeypatch=monkeypatch) == 0
    assert last(own)["global_step"] == 4
    other = arguments(own, "tiny-cot", output="other", trainer={"max_epochs": 1})
    assert run(*other, monkeypatch=monkeypatch) == 0
    assert run(*other, "--trainer.max_epochs", "2", monkeypatch=monkeypatch) == 2
    assert "trainer.max_epochs was 1 and is 2 now" in capsys.readouterr().err


def test_only_checkpoints_of_its_own_are_gone_on_from(own, monkeypatch, capsys):
    words = arguments(own, "tiny-cot", trainer={"max_epochs": 1})
    assert run(*words, monkeypatch=monkeypatch) == 0
    assert run(*arguments(own, "tiny-codi", output="codi", trainer={"max_epochs": 1}), monkeypatch=monkeypatch) == 0
    kept, codi = own / "run" / "checkpoints", own / "codi" / "checkpoints" / "last.ckpt"
    shutil.copy(codi, kept / "codi.ckpt")
    (kept / "cut.ckpt").write_bytes(codi.read_bytes()[:1000])
    cases = {codi: "goes on from those in", kept / "codi.ckpt": "is a checkpoint of CodiModule"}
    cases |= {kept / "cut.ckpt": "cut off", kept / "none.ckpt": "There is no checkpoint"}
    for path, message in cases.items():
        assert run(*words, "--ckpt_path", str(path), monkeypatch=monkeypatch) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error, error
    assert run("validate", *words[1:], "--ckpt_path", str(codi), monkeypatch=monkeypatch) == 2
    assert run("validate", *words[1:], monkeypatch=monkeypatch) == 0
    assert f"validates {kept / 'best.ckpt'}" in capsys.readouterr().out


def test_a_run_is_exported_by_its_own_command(own, monkeypatch):
    assert run(*arguments(own, "tiny-cot", trainer={"max_epochs": 1}), monkeypatch=monkeypatch) == 0
    export_main([str(own / "run"), "--out", str(own / "out"), "--weights", "last"])
    assert load_backbone(own / "out").fingerprint() == load_backbone(own / "run" / "model").fingerprint()


def test_fast_dev_run_goes_through_a_batch_and_writes_nothing(own, monkeypatch):
    assert run(*arguments(own, "tiny-cot"), "--trainer.fast_dev_run", "true", monkeypatch=monkeypatch) == 0
    assert not (own / "run").exists()


@pytest.mark.parametrize(
    ("configs", "name"),
    [
        (["configs/train/tiny-coconut.yaml"], "runs/tiny-coconut"),
        (["a/latent-rm-tiny.yaml", "latent-rm-tiny-colar.yaml", "debug.yaml"], "runs/latent-rm-tiny-colar-debug"),
        ([], "runs/CodiModule"),
    ],
)
def test_the_default_folder_has_the_name_of_the_recipe(configs, name):
    assert default_folder(configs, "CodiModule") == Path(name)


# Recipes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_config_parses_and_lists_only_what_differs(name):
    base = ["--config", str(CONFIGS / f"{AFTER[name]}.yaml")] if AFTER.get(name, name) != name else []
    config = ParserOnly(["fit", *base, "--config", str(CONFIGS / f"{name}.yaml")]).config.fit
    assert config.model.class_path.startswith("lightning_modules.")
    assert config.data.class_path.startswith("datamodules.")
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert len(text.splitlines()) <= 25
    assert not {"logger", "callbacks", "default_root_dir"} & set(yaml.safe_load(text).get("trainer", {}))


class ParserOnly(TrainingCLI):
    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


BACKBONE_RECIPES = [name for name in RECIPES if not name.startswith("latent-rm") and name != "cot-135m-adapter"]


@pytest.mark.parametrize("name", BACKBONE_RECIPES)
def test_debug_can_be_laid_over_every_recipe_and_leaves_a_model_that_loads(name, folder, tmp_path_factory, monkeypatch):
    backbone = colar(tmp_path_factory, monkeypatch, folder) if "grpo" in name else None
    output = f"debug-{name}"
    size = {"batch_size": 16} if "grpo" in name else {}
    words = arguments(folder, name, "debug", output=output, backbone=backbone, trainer={"max_epochs": 2}, data=size)
    assert run(*words, monkeypatch=monkeypatch) == 0
    kind = next(kind for kind in ("coconut", "codi", "colar", "cot") if kind in name)
    kind = "cot" if name == "coconut-gpt2-written" else kind
    assert load_backbone(folder / output / "model").kind == kind


def colar(tmp_path_factory, monkeypatch, folder: Path) -> Path:
    """What the reinforcement starts from: one with a predicted deviation."""
    words = arguments(folder, "tiny-colar", output="colar", trainer={"max_epochs": 1})
    if not (folder / "colar").exists():
        assert run(*words, monkeypatch=monkeypatch) == 0
    return folder / "colar" / "model"


def test_every_stage_of_the_curriculum_is_gone_through(own, monkeypatch):
    stages = {"curriculum": {"cot_epochs": 1, "epochs_per_stage": 1}}
    words = arguments(own, "tiny-coconut", trainer={"max_epochs": 5}, model=stages)
    assert run(*words, monkeypatch=monkeypatch) == 0
    checkpoint = last(own)
    assert (checkpoint["epoch"], checkpoint["training"]["stage"], checkpoint["global_step"]) == (4, 4, 10)
    assert load_backbone(own / "run" / "model").num_latents == 6


# The command line -----------------------------------------------------------------------------------------------------


def test_flags_win_over_files(own, monkeypatch):
    seen = {}

    def stop_before_fit(self, subcommand):
        seen["module"], seen["epochs"] = self.model, self.trainer.max_epochs

    monkeypatch.setattr(TrainingCLI, "_run_subcommand", stop_before_fit)
    flags = ["--model.optimization.lr", "0.5", "--model.curriculum.cot_epochs", "7", "--trainer.max_epochs", "3"]
    assert run(*arguments(own, "tiny-coconut"), *flags, monkeypatch=monkeypatch) == 0
    assert (seen["module"].optimization.lr, seen["module"].curriculum.cot_epochs, seen["epochs"]) == (0.5, 7, 3)
    assert seen["module"].curriculum.epochs_per_stage == 2  # of the recipe
    assert seen["module"].optimization.betas == (0.9, 0.98)


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
        (["--trainer.accumulate_grad_batches", "4"], "model.global_batch_size"),
        (["--trainer.default_root_dir", "runs"], "--output"),
        (["--trainer.enable_checkpointing", "false"], "enable_checkpointing"),
        (["--trainer.overfit_batches", "2"], "overfit_batches"),
        (["--export.adapters_only", "true"], "--model.lora"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_bad_input_is_one_sentence_and_exit_code_2(own, monkeypatch, capsys, flags, part):
    assert run(*arguments(own, "tiny-coconut"), *flags, monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert part in lines[0]
    assert "Traceback" not in error
    assert not (own / "run").exists()


@pytest.mark.parametrize("words", [["--help"], ["fit", "--help"]])
def test_help_explains_every_option_of_its_own(words, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit:
        run(*words, monkeypatch=monkeypatch)
    assert exit.value.code == 0
    text = capsys.readouterr().out
    assert "configs/train/defaults.yaml" in text and "ChainOfThoughtModule" in text


def test_help_of_the_module_describes_the_curriculum(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run("fit", "--model.help", "CoconutModule", monkeypatch=monkeypatch)
    text = " ".join(capsys.readouterr().out.split())
    assert "Epochs of plain chain-of-thought before the first latent stage." in text
    assert "Examples per optimizer step" in text


def test_only_fit_and_validate_are_offered():
    assert set(TrainingCLI.subcommands()) == {"fit", "validate"}
