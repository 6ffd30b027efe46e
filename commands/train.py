"""The command line of `train.py`: any module and data module by class path, and layered YAML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import set_parsing_settings
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import SaveConfigCallback

from commands.base import CommandLine
from latent_tts.errors import UserError

CONFIGS = Path(__file__).parent.parent / "configs" / "train"
DESCRIPTION = """Trains a latent reasoning model (CoconutModule, CodiModule, ColarModule, ColarGRPOModule), the written
reasoning that it is compared with (ChainOfThoughtModule), or its reward model (LatentRMModule). Settings are layered, later
ones win: configs/train/defaults.yaml; each --config in turn; flags."""


class TrainingCLI(CommandLine):
    """`python train.py fit`: parses, makes module, data module and trainer, and trains; `validate` only validates."""

    def __init__(self, args: Sequence[str] | None = None) -> None:
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
        layered = {"default_config_files": [str(CONFIGS / "defaults.yaml")]}
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
