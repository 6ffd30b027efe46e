"""What both command lines share: LightningCLI with one-sentence errors, a help that starts with what matters, no chatter."""

from __future__ import annotations

import argparse
import logging
import re
import warnings
from collections.abc import Collection
from typing import Any, NoReturn

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.termination import StopOnSignal, without_lightnings_signals
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


class OneSentenceParser(LightningArgumentParser):
    """Reports a bad option as a UserError instead of usage text."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(one_sentence(message)) from ex


def one_sentence(message: str) -> str:
    """The parser's report of a bad option, a few lines of what each type of it expected, as one sentence."""
    lines = [line.strip(" -") for line in message.split("\n") if line.strip(" -")]
    if message.startswith("Problems parsing config"):
        reason = " ".join(lines).removeprefix("Problems parsing config: ").replace(' in "<unicode string>",', ", in")
        return f"A file given with --config is not valid YAML: {reason}."
    if message.startswith("the following arguments are required"):
        return f"{lines[0].rpartition(': ')[2]} has no value: give --{lines[0].rpartition(': ')[2]}, or a --config that does."
    if message.startswith("unrecognized arguments"):
        return f"There is no option {message.partition(': ')[2]}: --help lists the options."
    key = re.search(r'Parser key "([^"]+)":', message)
    expected = [match[1] for line in lines if (match := re.match(r"Expected an? (.*?)(?:\. Got value: .*)?$", line))]
    value = re.search(r"(?:Given|Got) value: (.*)", message)
    if key and expected and value:
        return f"Option --{key[1]} must be {' or '.join(map(_type_name, dict.fromkeys(expected)))}, got {value[1]}."
    reason = re.sub(r'^Parser key "[^"]+":\s*', "", lines[-1]).rstrip(".")
    reason = re.sub(r"^Expected a dot import path string: (.*)", r"there is no class named '\1'", reason)
    return f"Option --{key[1]}: {reason[0].lower()}{reason[1:]} (--help describes it)." if key else f"{reason}."


def _type_name(text: str) -> str:
    """`<class 'int'>` -> `int`, `typing.Literal['a', 'b']` -> `one of 'a', 'b'`."""
    text = re.sub(r"typing\.Literal\[(.*)\]", r"one of \1", text)
    return re.sub(r"<class '(\w+)'>", r"\1", text).replace("NoneType", "null")


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
    def show_trainer_options(parser: LightningArgumentParser, shown: Collection[str], title: str) -> None:
        """Leaves the trainer's other options out of `--help`, where they have no use; they are accepted all the same."""
        for action in parser._actions:
            group, _, option = action.dest.partition(".")
            if group == "trainer" and option and option not in shown:
                action.help = argparse.SUPPRESS
        for found in parser._action_groups:
            if found.title == "Customize every aspect of training via flags":
                found.title = title

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
