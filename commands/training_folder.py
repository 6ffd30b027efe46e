"""The folder of a training: what a run in it may do, and what it goes on from.

DIR/config.yaml     the whole configuration: `train.py fit --config DIR/config.yaml --output DIR` runs it again
DIR/run.json        command, versions, commit, device, dates, wall-clock, state, and the settings that have to agree
DIR/checkpoints/    last.ckpt, from which the same command goes on, and best.ckpt
DIR/model/          the export at the end, in the published layout
DIR/tensorboard/    curves
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latent_tts.errors import UserError
from latent_tts.evaluation.settings import Settings, differences, flatten
from lightning_modules.checkpoint_reading import read_checkpoint

_NO_INFLUENCE = (
    "trainer.logger",
    "trainer.accelerator",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.log_every_n_steps",
    "trainer.profiler",
    "trainer.max_time",
    "trainer.num_sanity_val_steps",
    "trainer.fast_dev_run",
    "data.init_args.num_workers",
    "checkpoint_minutes",
)
_LENGTH = ("trainer.max_epochs", "trainer.max_steps")


class TrainingFolder:
    """Reads a folder; nothing is written here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints, self.model, self.run_file = folder / "checkpoints", folder / "model", folder / "run.json"
        self.last = self.checkpoints / "last.ckpt"

    @property
    def run(self) -> dict[str, Any]:
        """What `run.json` says; empty where there is none."""
        try:
            content: dict[str, Any] = json.loads(self.run_file.read_text()) if self.run_file.exists() else {}
        except (OSError, ValueError) as error:
            raise UserError(f"{self.run_file} cannot be read ({error}): give another --output.") from error
        return content

    def check(self, settings: Settings) -> None:
        """UserError where the folder holds a training of other settings, each named with both values."""
        run = self.run
        if not run:
            if self.last.exists():
                raise UserError(f"{self.checkpoints} holds checkpoints of an unknown training: give another --output.")
            return
        settings = as_begun(settings, run)
        changed = differences(longer(run["settings"], settings), settings)
        if changed:
            raise UserError(
                f"{self.folder} holds a training with other settings: {'; '.join(changed)}. Give another --output, or the same "
                "settings to go on."
            )

    def is_finished(self, settings: Settings) -> bool:
        """Whether a training of these settings has ended here, so that nothing is left to do."""
        run = self.run
        return run.get("state") == "finished" and run["settings"] == as_begun(settings, run)

    def check_commits(self, commits: Mapping[str, str]) -> None:
        """UserError where the training began with another commit of a hub's model than is read now, by option."""
        begun = self.run.get("model_commits", {})
        for option, commit in commits.items():
            if (before := begun.get(option, commit)) != commit:
                name = self.run["settings"][f"model.init_args.{option}"].partition("@")[0]
                raise UserError(
                    f"{self.folder} began with another commit of {name} than the hub gives now: "
                    f"give --model.{option} {name}@{before} to go on."
                )

    def checkpoint(self, given: str | None, module: str) -> Path | None:
        """What a training goes on from: the given checkpoint, else the last one, None at its first start.

        Args:
            given: Value of ``--ckpt_path``.
            module: Name of the class that is trained.

        Raises:
            UserError: It is not of this folder, missing, cut off, or of another module.
        """
        if given is None and not self.last.exists():
            return None
        path = self.last if given is None else Path(given)
        found = read_checkpoint(path)
        if self.checkpoints.resolve() not in path.resolve().parents:
            raise UserError(
                f"--ckpt_path {path} is no checkpoint of this training, which goes on from those in {self.checkpoints} alone: "
                "to start from what another has trained, export it and give the folder as --model.backbone."
            )
        _require_module(found, path, module)
        return path


def checked(path: Path, module: str) -> Path:
    """The path of a checkpoint that can be loaded into a module of this class.

    Raises:
        UserError: It is missing, cut off, or of another module.
    """
    _require_module(read_checkpoint(path), path, module)
    return path


def _require_module(content: dict[str, Any], path: Path, module: str) -> None:
    found = content["training"]["module"]
    if found != module:
        raise UserError(f"{path} is a checkpoint of {found}, and {module} is trained here: give another --output.")


def settings_of(config: dict[str, Any]) -> Settings:
    """The options that the outcome of a training depends on, flat, as they come back from JSON."""
    flat = flatten({name: config[name] for name in ("model", "data", "trainer", "export") if name in config})
    kept = {name: value for name, value in flat.items() if not name.startswith(_NO_INFLUENCE)}
    settings: Settings = json.loads(json.dumps(kept, default=str))
    return settings


def as_begun(settings: Settings, run: Mapping[str, Any]) -> Settings:
    """The settings with a model's commit left out where the training began with it, unnamed."""
    begun = run["settings"] if run else {}
    names = {f"model.init_args.{option}": commit for option, commit in run.get("model_commits", {}).items()}
    pinned = {key for key, commit in names.items() if settings.get(key) == f"{begun.get(key)}@{commit}"}
    return settings | {key: begun[key] for key in pinned}


def longer(stored: Settings, current: Settings) -> Settings:
    """The stored settings with the current length of training, where a longer one goes through the same steps first."""
    optimization = "model.init_args.optimization."
    depends = (
        current.get(f"{optimization}schedule", "constant") != "constant"
        or current.get(f"{optimization}warmup_share")
        or current.get("model.init_args.distillation.warmup")
    )
    grown = {name: current[name] for name in _LENGTH if name in current and _is_more(current[name], stored.get(name))}
    return stored if depends else stored | grown


def _is_more(length: Any, before: Any) -> bool:
    return isinstance(length, int) and isinstance(before, int) and (length == -1 or length > before >= 0)


def default_folder(configs: Sequence[str], module: str) -> Path:
    """runs/NAME, with the name of the recipe: the words of all files given with --config, none twice.

    >>> default_folder(["configs/train/tiny-coconut.yaml", "configs/train/debug.yaml"], "CoconutModule").as_posix()
    'runs/tiny-coconut-debug'
    """
    words = [word for config in configs for word in Path(config).stem.split("-")]
    return Path("runs") / ("-".join(dict.fromkeys(words)) or module)
