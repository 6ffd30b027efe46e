"""The command line of `train.py`: a module, its data, layered YAML, and the folder that a training fills."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import set_parsing_settings
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser

from callbacks.checkpoint_activations import CheckpointActivations
from callbacks.export import Export, ExportModel
from callbacks.folder_lock import OneRunAtATime
from callbacks.termination import StopOnSignal
from callbacks.training_curves import TrainingSpeed, ValidationAnswers
from callbacks.training_folder import KeepLast, KeepRun, has_ended
from callbacks.training_progress import training_progress
from commands.base import CommandLine
from commands.catalogue import classes_below, import_named
from commands.curves import RunCurves
from commands.explain import explain, mentioned
from commands.help import offer, show_trainer_options
from commands.ranks import rank
from commands.training_folder import TrainingFolder, checked, default_folder, settings_of
from latent_tts import __version__
from latent_tts.errors import UserError
from latent_tts.evaluation.provenance import now, provenance
from lightning_modules.training_module import TrainingModule

CONFIGS = Path(__file__).parent.parent / "configs" / "train"
DESCRIPTION = """Trains a latent reasoning model (CoconutModule, CodiModule, ColarModule, ColarGRPOModule), the written
reasoning that it is compared with (ChainOfThoughtModule), or its reward model (LatentRMModule). Settings are layered, later
ones win: configs/train/defaults.yaml; each --config in turn; flags. A training fills one folder, --output, and the same command
goes on in it."""

_TRAINER_OPTIONS = (
    "accelerator", "strategy", "devices", "num_nodes", "precision", "logger", "callbacks", "max_epochs", "max_steps", "max_time",
    "val_check_interval", "check_val_every_n_epoch", "log_every_n_steps", "gradient_clip_val", "enable_progress_bar",
)  # fmt: skip


class TrainingCLI(CommandLine):
    """`python train.py fit`: parses, makes module, data module and trainer, and trains; `validate` only validates."""

    def __init__(self, args: Sequence[str] | None = None) -> None:
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
        self.trainings = classes_below("TrainingModule", "lightning_modules")
        self.data = classes_below("LightningDataModule", "datamodules")
        import_named(mentioned(sys.argv[1:] if args is None else args), [*self.trainings.values(), *self.data.values()])
        layered = {
            "default_config_files": [str(CONFIGS / "defaults.yaml")],
            "usage": "train.py fit [--config FILE]... [--model CLASS] [--model.OPTION VALUE]... [--data.OPTION VALUE]... "
            "[--trainer.OPTION VALUE]...",
            "description": DESCRIPTION,
        }
        super().__init__(
            TrainingModule,
            LightningDataModule,
            args=args,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_kwargs={"description": DESCRIPTION} | {name: layered for name in self.subcommands()},
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_core_arguments_to_parser(parser)
        offer(parser, "model", "What is trained", self.trainings.values())
        offer(parser, "data", "What it is trained on", self.data.values())
        show_trainer_options(
            parser, _TRAINER_OPTIONS, "The trainer (the other options of Lightning's Trainer work too)"
        )

    def explanation(self, parser: LightningArgumentParser, given: list[str]) -> str | None:
        names = {"model": list(self.trainings), "data": list(self.data)}
        commands = ", ".join(self.subcommands())
        if not given or given[0].startswith("-"):
            return f"A command is missing: give one of {commands} first."
        if given[0] not in self.subcommands():
            return f"There is no command {given[0]!r}; there are: {commands}."
        return explain(self._subcommand_parsers[given[0]], given[1:], names)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        skipped = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule", "weights_only"}
        return {"fit": skipped, "validate": skipped | {"verbose"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--output",
            type=str | None,
            default=None,
            help="Folder of the training; by default runs/NAME, after the recipe. `validate` takes its best checkpoint.",
        )
        parser.add_argument("--export", type=Export, default=Export())
        parser.add_argument(
            "--checkpoint_minutes",
            type=float | None,
            default=15.0,
            help="Minutes between two checkpoints within an epoch, beside the one at its end; null writes none there.",
        )

        parser.add_argument(
            "--checkpoint_activations",
            type=bool,
            default=False,
            help="Whether transformer blocks are computed again in the backward pass: less memory, more time, equal gradients.",
        )

    # Before anything is made ------------------------------------------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        config = self._options()
        self.module_name = config["model"]["class_path"].rpartition(".")[2]
        self.folder = TrainingFolder(Path(config["output"] or default_folder(self._recipes(), self.module_name)))
        self.settings = settings_of(config)
        refuse_what_the_command_decides(config["trainer"])
        training = self.subcommand == "fit" and not config["trainer"]["fast_dev_run"]
        if training:
            self.folder.check(self.settings)
            if config["ckpt_path"] is not None:
                self.folder.checkpoint(config["ckpt_path"], self.module_name)
        elif config["ckpt_path"] is not None:
            checked(Path(config["ckpt_path"]), self.module_name)
        self.is_finished = training and config["ckpt_path"] is None and self.folder.is_finished(self.settings)

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = self.config[str(self.subcommand)].as_dict()
        return options

    def _recipes(self) -> list[str]:
        """The files given with --config, in turn."""
        given = self.config[str(self.subcommand)].get("config") or []
        return [str(file) for file in given if file is not None]

    def output_folder(self) -> Path | None:
        writes = self.subcommand == "fit" and not self._options()["trainer"]["fast_dev_run"]
        return self.folder.folder if writes else None

    def instantiate_classes(self) -> None:
        if not self.is_finished:
            super().instantiate_classes()

    # The trainer ------------------------------------------------------------------------------------------------------

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        folder, options = self.folder, self._get(self.config_init, "trainer")
        logged = options["logger"] is None or options["logger"] is True
        logger = RunCurves(folder.folder, metrics=[self.model.monitor]) if logged else options["logger"]
        dry = bool(options["fast_dev_run"])
        if self.subcommand != "fit" or dry:
            logger = False if logged else logger
        given = {**options, "logger": logger, "default_root_dir": str(folder.folder), **kwargs}
        training = self.subcommand == "fit" and not dry
        bar = [training_progress()] if training and self._wants_progress(options) else []
        again = (
            [CheckpointActivations()] if self.subcommand == "fit" and self._options()["checkpoint_activations"] else []
        )
        return self._instantiate_trainer(given, [*again, *bar, *self._callbacks(logger)] if training else again)

    @staticmethod
    def _wants_progress(options: Any) -> bool:
        """Whether progress is shown in the project's own way: no bar was given, and none refused."""
        given = options["callbacks"] or []
        own = any(isinstance(one, ProgressBar) for one in (given if isinstance(given, list) else [given]))
        return options["enable_progress_bar"] is not False and not own

    def _callbacks(self, logger: Any) -> list[Callback]:
        folder, options = self.folder, self._options()
        self.keeper = KeepRun(folder.folder, self.parser.dump(self.config, skip_none=False), {})
        monitor = [LearningRateMonitor("step"), TrainingSpeed(), ValidationAnswers()] if logger else []
        best = ModelCheckpoint(
            folder.checkpoints,
            "best",
            self.model.monitor,
            mode="max",
            save_weights_only=True,
            save_on_train_epoch_end=False,  # after a validation, and only there
            enable_version_counter=False,
        )
        export = ExportModel(folder.model, self._get(self.config_init, "export"))
        last = KeepLast(folder.last, options["checkpoint_minutes"])
        lock = OneRunAtATime(folder.folder)
        return [StopOnSignal(folder.last), lock, *monitor, *self._diagnostics(), best, last, export, self.keeper]

    def _diagnostics(self) -> list[Callback]:
        """What only some trainings show; imported where it is needed, as every import delays `--help`."""
        if self.module_name != "LatentRMModule":
            return []
        from callbacks.reward_diagnostics import RewardDiagnostics

        return [RewardDiagnostics()]

    # The run ----------------------------------------------------------------------------------------------------------

    def _run_subcommand(self, subcommand: str) -> None:
        if self.is_finished:
            self.say(f"{self.folder.folder} is finished: {self.outcome()}")
        elif subcommand == "validate":
            self._validate()
        else:
            self._fit()

    def _fit(self) -> None:
        folder, trainer = self.folder, self.trainer
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.fit(self.model, self.datamodule)
            return
        run = folder.run
        if run and run["num_processes"] != trainer.world_size:
            raise UserError(
                f"{folder.folder} holds a training of {run['num_processes']} process(es), which share its batches: go on with as "
                f"many, not {trainer.world_size}, or give another --output."
            )
        folder.check_commits(self.model.commits)
        checkpoint = folder.checkpoint(self._options()["ckpt_path"], self.module_name)
        made = provenance(__version__, trainer.strategy.root_device, str(trainer.precision), trainer.world_size)
        self.keeper.description = made | {"started": now(), "settings": self.settings}
        self.keeper.description["seconds_before"] = run.get("seconds", 0.0)
        try:
            trainer.fit(self.model, self.datamodule, ckpt_path=checkpoint, weights_only=True)
        except ValueError as error:
            if "`val_check_interval`" not in str(error):
                raise
            raise UserError(
                f"--trainer.val_check_interval {trainer.val_check_interval} is more than the batches of an epoch: give fewer, a "
                "share of an epoch such as 0.5, or --trainer.check_val_every_n_epoch null to count over epochs."
            ) from error
        if has_ended(trainer):
            self.say(f"{folder.folder} is finished after {trainer.global_step} steps: {self.outcome()}")
        else:
            self.say(
                f"{folder.folder} stopped after {trainer.global_step} steps; the same command goes on: {self.outcome()}"
            )

    def _validate(self) -> None:
        given = self._options()["ckpt_path"]
        kept = [self.folder.checkpoints / f"{name}.ckpt" for name in ("best", "last")]
        path = Path(given) if given else next((file for file in kept if file.exists()), None)
        self.say(f"validates {path or 'the model that a training would start from'}")
        checkpoint = None if path is None else checked(path, self.module_name)
        self.trainer.validate(self.model, self.datamodule, ckpt_path=checkpoint, weights_only=True)

    def outcome(self) -> str:
        """Where checkpoint and model are, and what comes next."""
        from lightning_modules.trainings import TRAININGS

        backbone = self._options()["model"]["init_args"]["backbone"]
        next_command = TRAININGS[self.module_name].next_command(str(self.folder.model), backbone)
        return f"checkpoint {self.folder.last}, model {self.folder.model}; next: {shlex.join(next_command)}"

    @staticmethod
    def say(sentence: str) -> None:
        """Prints it once, however many processes the run has."""
        if rank() == 0:
            print(sentence, file=sys.stdout, flush=True)

    def _parse_ckpt_path(self) -> None:
        """Reads nothing: the options stored in a checkpoint never win over files and flags."""


def refuse_what_the_command_decides(trainer: dict[str, Any]) -> None:
    """UserError for options of the trainer that `--output` stands for."""
    if trainer["default_root_dir"] is not None:
        raise UserError("--trainer.default_root_dir has no effect here: give --output, the folder of the training.")
    if trainer["enable_checkpointing"] is False:
        raise UserError("--trainer.enable_checkpointing false would leave nothing to go on from: leave it out.")
