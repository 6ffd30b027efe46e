"""Writes annotated problems as they come, and lets a run that was killed go on where it stopped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.protocols import commit_of_problems
from datamodules.rollout_data import RolloutDataModule
from latent_tts import __version__
from latent_tts.annotation.records import AnnotatedProblem
from latent_tts.annotation.writer import AnnotationWriter, write_index
from latent_tts.errors import UserError
from latent_tts.evaluation.provenance import now, provenance, seconds_worked
from latent_tts.evaluation.run_folder import CONFIG_FILE, read_run, write_run
from latent_tts.files.whole import write_whole
from lightning_modules.rollout_annotation_module import RolloutAnnotationModule


class WriteAnnotations(Callback):
    """Appends what `RolloutAnnotationModule.predict_step` returns to a folder of annotations, each problem once.

    The data module leaves out the batches whose problems are all in the folder. A batch with a missing problem runs whole,
    so that it is computed as it would have been, and only the missing ones are written.

    Args:
        output: The folder of annotations.
        data: A description of the problems, which another run must share to go on in this folder.
        shard_size: Problems in a file; at most this many (less one) of each device are computed again after a kill.
        config: Text of OUTPUT/config.yaml, which runs it again; none is written where it is empty.
    """

    def __init__(self, output: str | Path, data: str, shard_size: int = 16, config: str = "") -> None:
        self.output, self.data, self.shard_size, self.config = Path(output), data, shard_size, config
        self.num_at_start = 0  # problems that were in the folder
        self._writer: AnnotationWriter | None = None
        self._earlier: dict[str, Any] = {}  # run.json as it was
        self._run: dict[str, Any] = {}
        self._began = time.monotonic()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the folder and reads which problems are there; a UserError leaves everything as it was."""
        module, data = _parts(trainer, pl_module)
        settings = module.annotation_settings(self.data, str(trainer.precision))
        refused: UserError | None = None
        try:
            self._writer = AnnotationWriter(self.output, settings, trainer.global_rank, self.shard_size)
            self._writer.require_same_data(data.problems())
        except UserError as error:
            refused = error
        # Every rank has read what is on disk before any adds to it; where one is refused, none waits for it later.
        accepted = trainer.strategy.reduce_boolean_decision(refused is None, all=True)
        if refused is not None or not accepted or self._writer is None:
            if self._writer is not None:
                self._writer.close()
            raise refused or UserError(f"Another process of this run cannot write to {self.output}.")
        finished = set(self._writer.golds)
        self.num_at_start = len(finished)
        module.metrics.num_problems = len(range(trainer.global_rank, len(finished), trainer.world_size))
        data.leave_out(finished.__contains__)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The run is accepted: what it is may stand in the folder. One that had ended stays as it is until it grows."""
        if not trainer.is_global_zero:
            return
        self._began = time.monotonic()
        self._earlier = read_run(self.output) or {}
        self._run = provenance(__version__, pl_module.device, str(trainer.precision), trainer.world_size)
        self._run |= {"data": commit} if (commit := commit_of_problems(trainer)) else {}
        self._run["started"] = self._earlier.get("started", now())
        if self._earlier.get("finished") is None:
            self._describe(None, self.num_at_start)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Sequence[AnnotatedProblem],
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        module, _ = _parts(trainer, pl_module)
        assert self._writer is not None
        for problem in outputs:
            if self._writer.add(problem):
                module.metrics.update(problem)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what is left, and the index once every device has."""
        self._close()
        trainer.strategy.barrier("every shard is written")
        if trainer.is_global_zero:
            num_problems = write_index(self.output)["num_problems"]
            if num_problems > self.num_at_start or self._earlier.get("finished") is None:
                self._describe(now(), num_problems)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """An interrupted run keeps what it has computed; what it ended by is not hidden by a second failure."""
        with suppress(UserError):
            self._close()

    def _describe(self, finished: str | None, num_problems: int) -> None:
        """Writes run.json and config.yaml; `seconds` adds up over the processes that have worked in the folder."""
        assert self._writer is not None
        seconds = seconds_worked(self._earlier.get("seconds", 0.0), self._began)
        entries = {"finished": finished, "seconds": seconds, "num_problems": num_problems}
        write_run(self.output, self._run | entries | {"settings": self._writer.settings.to_json()})
        if self.config:
            write_whole(self.output / CONFIG_FILE, self.config)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _parts(trainer: Trainer, module: LightningModule) -> tuple[RolloutAnnotationModule, RolloutDataModule]:
    """The two that this callback works with.

    Raises:
        UserError: The run has others.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(module, RolloutAnnotationModule) or not isinstance(data, RolloutDataModule):
        raise UserError("WriteAnnotations writes what RolloutAnnotationModule makes of RolloutDataModule's problems.")
    return module, data
