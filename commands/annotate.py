"""Annotates rollouts for the training of a reward model: `python evaluate.py annotate --help`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from callbacks.annotation_writer import WriteAnnotations
from callbacks.progress import problem_progress
from commands.base import CommandLine
from commands.help import show_trainer_options
from datamodules.rollout_data import RolloutDataModule
from latent_tts.annotation.reader import AnnotationStore
from latent_tts.errors import UserError
from lightning_modules.rollout_annotation_module import RolloutAnnotationModule

CONFIGS = Path(__file__).parent.parent / "configs" / "annotate"
ANNOTATIONS = Path("runs") / "annotations"
DESCRIPTION = """Annotates latent rollouts for the training of a reward model: N rollouts of every problem, and for every latent
prefix the share of M continuations that reach the gold answer. A run that was killed goes on with the same command, and a
finished one can be continued with a larger --data.size or --data.limit."""

_NO_INFLUENCE = ("batch_size", "num_workers", "sort_window", "size", "limit")  # options no single annotation depends on


class AnnotationCLI(CommandLine):
    """`python evaluate.py annotate`: parses, and makes the module, the data module and the trainer; `run` annotates.

    Settings are layered, later ones win: configs/annotate/default.yaml; each --config in turn; flags.
    """

    def __init__(self, args: Sequence[str] | None = None) -> None:
        super().__init__(
            RolloutAnnotationModule,
            RolloutDataModule,
            run=False,
            args=list(sys.argv[1:] if args is None else args),
            trainer_defaults={
                "logger": False,
                "enable_checkpointing": False,
                "enable_model_summary": False,
                "use_distributed_sampler": False,
            },
            parser_kwargs={"description": DESCRIPTION, "default_config_files": [str(CONFIGS / "default.yaml")]},
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_core_arguments_to_parser(parser)
        shown = ("accelerator", "strategy", "devices", "num_nodes", "precision", "enable_progress_bar")
        show_trainer_options(parser, shown, "Devices and precision (the other options of Lightning's Trainer work too)")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--output",
            type=str | None,
            default=None,
            help="Folder of the annotations; by default runs/annotations/NAME, with a name made from the settings.",
        )
        parser.add_argument(
            "--shard_size",
            type=int,
            default=16,
            help="Problems in a file; at most this many, less one, of each device are computed again after a kill.",
        )

    def check(self) -> None:
        super().check()
        if self.config.trainer.logger not in (None, False):
            raise UserError(
                "--trainer.logger has nothing to log in an annotation, which says how it fares on the console and in run.json: "
                "leave it out."
            )

    def output_folder(self) -> Path:
        return Path(self.config.output or ANNOTATIONS)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        self.refuse_half_weights(self.config.trainer.precision)
        data = self.data_description()
        self.output = Path(self.config.output or self._default_output(data))
        config = self.parser.dump(self.config, skip_none=False)
        self.writer = WriteAnnotations(self.output, data, self.config.shard_size, config)
        callbacks: list[Any] = [self.writer]
        if self.config.trainer.enable_progress_bar is not False:
            callbacks.append(problem_progress())
        return self._instantiate_trainer({**self._get(self.config_init, "trainer"), **kwargs}, callbacks)

    def run(self) -> None:
        """Annotates; the annotations are in `self.output`."""
        self.trainer.predict(self.model, datamodule=self.datamodule, return_predictions=False)
        self._report()

    def data_description(self) -> str:
        """The data's options that annotations depend on, as JSON; one that is false is as if it were not there."""
        options = self.config.data.as_dict()
        kept = {key: value for key, value in options.items() if key not in _NO_INFLUENCE and value is not False}
        return json.dumps(kept, sort_keys=True)

    def _default_output(self, data: str) -> Path:
        """runs/annotations/BACKBONE-DATA-DIGEST: the same for the same settings, another for others."""
        digest = self.model.annotation_settings(data, str(self.config.trainer.precision)).digest()[:8]
        names = (Path(self.config.model.backbone).name, Path(self.config.data.source).stem)
        return ANNOTATIONS / "-".join([*names, digest])

    @rank_zero_only
    def _report(self) -> None:
        store = AnnotationStore(self.output)
        right, wrong = sum(store.all_right), sum(store.all_wrong)
        new = len(store) - self.writer.num_at_start
        print(f"{len(store)} annotated problems in {self.output}, of which {right} all right and {wrong} all wrong.")
        print(f"{new} of them are new." if new else "It was finished: nothing was left to do.")


def main(args: Sequence[str]) -> None:
    """Annotates."""
    AnnotationCLI(args).run()
