"""What both command lines share: LightningCLI with one-sentence errors, a help that starts with what matters, no chatter."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any, NoReturn

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.termination import StopOnSignal, without_lightnings_signals
from commands.explain import explain
from commands.help import HelpFormatter
from commands.launch import check_processes, watch_ranks
from latent_tts.errors import UserError

_IRRELEVANT_WARNINGS = (
    ".*does not have many workers.*",
    ".*Starting from v1.9.0, `tensorboardX` has been removed.*",
    ".*The `srun` command is available.*",
    ".*isinstance.treespec, LeafSpec.. is deprecated.*",
    ".*Your `IterableDataset` has `__len__` defined.*",
    ".*Experiment logs directory .* exists and is not empty.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*LightningCLI's args parameter is intended to run from within Python.*",
)


def quiet_lightning() -> None:
    """Keeps Lightning's tips and its remarks on normal conditions off the console; real warnings stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", message)


class BadOptionError(UserError):
    """What the parser says; `CommandLine.parse_arguments` finds better words where it can."""


class OneSentenceParser(LightningArgumentParser):
    """Raises what is wrong with an option instead of printing usage text; abbreviated options are unknown options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        defaults: dict[str, Any] = {"allow_abbrev": False, "formatter_class": HelpFormatter}
        super().__init__(*args, **(defaults | kwargs))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise BadOptionError(one_sentence(message)) from ex


def one_sentence(message: str) -> str:
    """The parser's report on one line, without what it repeats."""
    text = " ".join(message.split()).replace(' in "<unicode string>",', ", in").rstrip(".")
    if text.startswith("Problems parsing config: "):
        return f"A file given with --config is not valid YAML: {text.removeprefix('Problems parsing config: ')}."
    return f"{text}; --help lists the options."


class CommandLine(LightningCLI):
    """LightningCLI as this project uses it; see the module docstring.

    Model and data options come before the trainer's in `--help`; nothing global is seeded (every part takes its own seed), and
    no optimizer options are added (a module makes its own).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        quiet_lightning()
        defaults: dict[str, Any] = {
            "parser_class": OneSentenceParser,
            "save_config_callback": None,
            "seed_everything_default": False,
            "auto_configure_optimizers": False,
        }
        super().__init__(*args, **(defaults | kwargs))

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Seeds are options of the parts that draw; there is no global one."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses.

        Raises:
            UserError: An option that is unknown or does not take its value, named with what there is.
        """
        given = list(sys.argv[1:] if args is None else args)
        try:
            super().parse_arguments(parser, args)
        except BadOptionError as error:
            raise UserError(self.explanation(parser, given) or str(error)) from error

    def explanation(self, parser: LightningArgumentParser, given: list[str]) -> str | None:
        """What is wrong with a command line that the parser has refused; None where that is not known."""
        return explain(parser, given)

    def _set_seed(self) -> None:
        """Nothing global is seeded."""

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(self._model_class, "model", subclass_mode=self.subclass_mode_model)
        if self.datamodule_class is not None:
            parser.add_lightning_class_args(self._datamodule_class, "data", subclass_mode=self.subclass_mode_data)
        else:
            parser.add_lightning_class_args(
                self._datamodule_class, "data", subclass_mode=self.subclass_mode_data, required=False
            )
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults(
            {f"trainer.{key}": value for key, value in self.trainer_defaults.items() if key != "callbacks"}
        )

    @staticmethod
    def refuse_half_weights(precision: Any) -> None:
        """Types of weights are the model's option: Lightning would convert the scoring heads too, which stay in float32.

        Raises:
            UserError: A precision of the trainer that converts weights to half precision.
        """
        if str(precision) in ("bf16-true", "16-true"):
            raise UserError(
                f"--trainer.precision {precision} would convert scoring heads too: give --model.dtype bfloat16, "
                "or --trainer.precision bf16-mixed."
            )

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
        given = [*(config.get("callbacks") or []), *callbacks]
        stop = [] if any(isinstance(callback, StopOnSignal) for callback in given) else [StopOnSignal()]
        try:
            trainer = super()._instantiate_trainer(config, [*stop, *callbacks])
            without_lightnings_signals(trainer)
            check_processes(trainer)
            watch_ranks(trainer)
            return trainer
        except UserError:
            raise
        except (MisconfigurationException, ImportError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"The --trainer options do not fit this machine or each other: {error}") from error
