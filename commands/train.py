"""The command line of `train.py`: any module and data module by class path, and layered YAML."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import set_parsing_settings
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from commands.base import CommandLine
from commands.catalogue import classes_below, import_named
from commands.explain import explain, mentioned
from commands.help import offer, show_trainer_options
from latent_tts.errors import UserError

CONFIGS = Path(__file__).parent.parent / "configs" / "train"
DESCRIPTION = """Trains a latent reasoning model (CoconutModule, CodiModule, ColarModule, ColarGRPOModule), the written
reasoning that it is compared with (ChainOfThoughtModule), or its reward model (LatentRMModule). Settings are layered, later
ones win: configs/train/defaults.yaml; each --config in turn; flags."""

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
            LightningModule,
            LightningDataModule,
            args=args,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfigCallback,
            save_config_kwargs={"overwrite": True},
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
        skipped = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule"}
        return {"fit": skipped, "validate": skipped}

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise user_error_behind(error) or error from None

    def _parse_ckpt_path(self) -> None:
        """Reads nothing: the options stored in a checkpoint never win over files and flags."""


def user_error_behind(error: BaseException | None) -> UserError | None:
    """The UserError of a constructor, which the parser wraps in reports of the types that it tried."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error
