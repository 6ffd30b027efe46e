"""The command line of `evaluate.py`: options, layered YAML, and the callbacks that every evaluation has."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from callbacks.folder_lock import OneRunAtATime
from callbacks.live_metrics import LiveMetrics
from callbacks.prediction_writer import PredictionWriter
from callbacks.progress import problem_progress
from callbacks.scaling_report import ScalingReport
from commands.base import CommandLine
from commands.curves import RunCurves
from commands.help import show_trainer_options
from commands.retired import without_retired
from datamodules.rollout_data import RolloutDataModule
from latent_tts.evaluation.settings import Settings, flatten
from lightning_modules.parallel_tts_module import ParallelTTSModule

CONFIGS = Path(__file__).parent.parent / "configs" / "evaluate"
RESULTS = Path("results")
DEMO = CONFIGS / "demo" / "tiny-colar.yaml"
DESCRIPTION = """Parallel test-time scaling of a latent reasoning model: thinks N times per problem in the model's continuous
space, aggregates the answers, and measures how good they are. Without arguments it runs the demo, a tiny CoLaR on unseen
GSM-Symbolic problems. A run that was killed goes on with the same command. Another command, `evaluate.py annotate --help`,
makes the data that a reward model is trained on."""

_NO_INFLUENCE = ("batch_size", "num_workers", "sort_window")  # data options that no record depends on

_TRAINER_OPTIONS = ("accelerator", "devices", "num_nodes", "strategy", "precision", "logger", "enable_progress_bar")


class EvaluationCLI(CommandLine):
    """`python evaluate.py`: parses, and makes the module, the data module and the trainer; `run` evaluates.

    Settings are layered, later ones win: configs/evaluate/default.yaml; configs/evaluate/demo/tiny-colar.yaml where nothing else
    chooses a backbone; each --config in turn; flags.
    """

    def __init__(self, args: Sequence[str] | None = None) -> None:
        given = without_retired(sys.argv[1:] if args is None else args)
        super().__init__(
            ParallelTTSModule,
            RolloutDataModule,
            run=False,
            args=given,
            trainer_defaults={
                "logger": None,
                "enable_checkpointing": False,
                "enable_model_summary": False,
                "use_distributed_sampler": False,
            },
            parser_kwargs={
                "usage": "evaluate.py [--config FILE]... [--output DIR] [--model.OPTION VALUE]... [--data.OPTION VALUE]...",
                "description": DESCRIPTION,
                "default_config_files": [str(path) for path in base_configs(given)],
            },
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_core_arguments_to_parser(parser)
        show_trainer_options(
            parser, _TRAINER_OPTIONS, "Devices and precision (the other options of Lightning's Trainer work too)"
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--output",
            type=str | None,
            default=None,
            help="Folder of the results; by default results/NAME, with a name made from the settings.",
        )

    def output_folder(self) -> Path:
        return Path(self.config.output or RESULTS)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        self.refuse_half_weights(self.config.trainer.precision)
        settings = self.data_settings()
        precision = {"trainer.precision": str(self.config.trainer.precision)}
        self.output = Path(
            self.config.output or default_output(self.config, self.model.settings() | settings | precision)
        )
        bar = [] if self.config.trainer.enable_progress_bar is False else [problem_progress()]
        writer = PredictionWriter(self.output, settings, self.parser.dump(self.config, skip_none=False))
        report = ScalingReport(writer, self.data_options())
        # in the order of their work
        callbacks = [OneRunAtATime(self.output), writer, *bar, report, LiveMetrics()]
        given = {**self._get(self.config_init, "trainer"), **kwargs}
        if given["logger"] in (None, True):
            given["logger"] = RunCurves(self.output)
        return self._instantiate_trainer(given, callbacks)

    def run(self) -> None:
        """Evaluates; the results are in `self.output`."""
        self.trainer.predict(self.model, datamodule=self.datamodule, return_predictions=False)

    def data_settings(self) -> Settings:
        """The data's options that records depend on."""
        return flatten({"data": self.data_options()})

    def data_options(self) -> dict[str, Any]:
        """As they were given, by name; one that is false is as if it were not there."""
        given = self.config.data.as_dict().items()
        return {key: value for key, value in given if key not in _NO_INFLUENCE and value is not False}


def base_configs(args: Sequence[str]) -> list[Path]:
    """The configuration files that come before any `--config`."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("-c", "--config", nargs="?", action="append", default=[])
    finder.add_argument("--model.backbone", nargs="?", dest="backbone")
    found, _ = finder.parse_known_args(args)
    chosen = found.backbone is not None or any(map(_names_backbone, found.config))
    return [CONFIGS / "default.yaml", *([] if chosen else [DEMO])]


def _names_backbone(config: str | None) -> bool:
    """Whether a configuration file chooses the backbone; what is wrong with a file is for the parser to say."""
    try:
        return "backbone" in yaml.safe_load(Path(str(config)).read_text())["model"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return False


def default_output(config: Any, settings: Settings) -> Path:
    """results/BACKBONE-DATA-DIGEST: the same for the same settings, another for others."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    names = (Path(config.model.backbone).name, Path(config.data.source).stem)
    return RESULTS / "-".join([*names, digest])
