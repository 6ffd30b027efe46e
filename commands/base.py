"""What both command lines share: LightningCLI with one-sentence errors, a help that starts with what matters, no chatter."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any, cast, get_args

from jsonargparse._typehints import ActionTypeHint
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from callbacks.checkpoint_files import WholeCheckpoints
from callbacks.ranks_agree import RanksAgree
from callbacks.ranks_wait import RanksWait
from callbacks.termination import StopOnSignal, without_lightnings_signals
from commands.checks import Stage, check_machine, check_objects, check_trainer, logged_by, made
from commands.effects import refuse_without_effect
from commands.explain import (
    BadOptionError,
    OneSentenceParser,
    content,
    explain,
    given_files,
    given_options,
    refuse_empty_values,
)
from commands.help import HelpFormatter
from commands.launch import check_processes, watch_ranks
from latent_tts.errors import UserError
from latent_tts.evaluation.run_folder import require_writable

_IRRELEVANT_WARNINGS = (
    ".*does not have many workers.*",
    ".*Starting from v1.9.0, `tensorboardX` has been removed.*",
    ".*The `srun` command is available.*",
    ".*resuming from a checkpoint that ended before the epoch ended.*",  # the data module knows where to go on
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


class CommandParser(OneSentenceParser, LightningArgumentParser):
    """The parser of a command, with its help."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        defaults: dict[str, Any] = {"formatter_class": HelpFormatter}
        super().__init__(*args, **(defaults | kwargs))

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> Any:
        """Where text is a value of its own (`str | LatentBackbone`), the name of a file stays a name.

        By default the parser puts the file's content in its place, for an empty one null, without a word.
        """
        added = super().add_class_arguments(*args, **kwargs)
        for action in self._actions:
            if isinstance(action, ActionTypeHint) and str in get_args(action._typehint):
                action._enable_path = False
        return added


def refuse_empty_files(parser: LightningArgumentParser, given: list[str]) -> None:
    """Refuses an empty file where options, or an option's objects, can be read from one: it would be null, without a word.

    Raises:
        UserError: There is such a file.
    """
    for file in given_files(given):
        if not content(file):
            raise UserError(f"--config {file} holds no option: it says nothing, so leave it out.")
    reads_files = {action.dest for action in parser._actions if getattr(action, "_enable_path", False)}
    for option in given_options(given):
        name = ".".join(option.path)
        if name not in reads_files or not isinstance(option.value, str) or not Path(option.value).is_file():
            continue
        if not Path(option.value).read_bytes().strip():
            raise UserError(f"--{name} {option.value} is an empty file: it says nothing, so leave the option out.")


def user_error_behind(error: BaseException | None) -> UserError | None:
    """The UserError of a constructor, which the parser wraps in reports of the types that it tried."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


class CommandLine(LightningCLI):
    """LightningCLI as this project uses it; see the module docstring.

    Model and data options come before the trainer's in `--help`; nothing global is seeded (every part takes its own seed), and
    no optimizer options are added (a module makes its own).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        quiet_lightning()
        defaults: dict[str, Any] = {
            "parser_class": CommandParser,
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
        self.given = given = list(sys.argv[1:] if args is None else args)
        refuse_empty_values(given)
        parsers = getattr(self, "_subcommand_parsers", {})
        refuse_empty_files(parsers.get(given[0], parser) if given else parser, given)
        try:
            super().parse_arguments(parser, args)
        except BadOptionError as error:
            raise UserError(self.explanation(parser, given) or str(error)) from error

    def explanation(self, parser: LightningArgumentParser, given: list[str]) -> str | None:
        """What is wrong with a command line that the parser has refused; None where that is not known."""
        return explain(parser, given)

    def instantiate_classes(self) -> None:
        """Makes everything, after what can be known to fail has been refused."""
        self.check()
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise user_error_behind(error) or error from None

    def check(self) -> None:
        """Refuses what cannot work before a model is loaded.

        Raises:
            UserError: The folder cannot be written to, a trainer's option, callback, logger or monitored metric cannot work, or
                an option would have no effect.
        """
        if (output := self.output_folder()) is not None:
            require_writable(output)
        stage: Stage = "predict" if self.subcommand is None else cast(Stage, self.subcommand)
        options = (self.config if self.subcommand is None else self.config[self.subcommand]).as_dict()
        trainer = options["trainer"]
        if trainer.get("profiler"):
            logging.getLogger("lightning.pytorch.profilers.profiler").setLevel(logging.INFO)  # by which it is printed
        check_trainer(trainer, self.trainer_defaults, stage)
        parts = {name: options[name] or {} for name in ("model", "data")}
        named = [str(part.get("class_path", "")).rpartition(".")[2] for part in parts.values()]
        of_parts = {
            f"{name}.{key}": value for name, part in parts.items() for key, value in part.get("init_args", part).items()
        }
        refuse_without_effect(self.given, of_parts, [self._model_class.__name__, *named])
        check_machine(trainer)
        logged = logged_by(options["model"]["class_path"]) if self.subcommand is not None else None
        check_objects(trainer, stage, logged)

    def output_folder(self) -> Path | None:
        """Where files will be written, or above it; None where there will be none."""
        return None

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
        listed = config.get("callbacks") or []
        given = [*(listed if isinstance(listed, list) else [listed]), *callbacks]
        stop = [] if any(isinstance(callback, StopOnSignal) for callback in given) else [StopOnSignal()]
        agree = RanksAgree((self.config if self.subcommand is None else self.config[self.subcommand]).as_dict())
        ranks = [agree] if self.subcommand is not None else [agree, RanksWait()]
        trainer = made(lambda: super(CommandLine, self)._instantiate_trainer(config, [*stop, *ranks, *callbacks]))
        without_lightnings_signals(trainer)
        trainer.strategy.checkpoint_io = WholeCheckpoints()
        check_processes(trainer)
        watch_ranks(trainer)
        return trainer
