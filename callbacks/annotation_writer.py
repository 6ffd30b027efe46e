"""Writes annotated problems as they come, and lets a run that was killed go on where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from latent_tts.annotation.store import AnnotatedProblem, AnnotationWriter, write_index


class WriteAnnotations(Callback):
    """Appends what `RolloutAnnotationModule.predict_step` returns to a folder of annotations, each problem once.

    The data module leaves out the batches whose problems are all in the folder. A batch with a missing problem runs whole,
    so that it is computed as it would have been, and only the missing ones are written.

    Args:
        output: The folder of annotations.
        data: A description of the problems, which another run must share to go on in this folder.
        shard_size: Problems in a file; at most this many (less one) of each device are computed again after a kill.
    """

    def __init__(self, output: str | Path, data: str, shard_size: int = 16) -> None:
        self.output, self.data, self.shard_size = Path(output), data, shard_size
        self._writer: AnnotationWriter | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the folder and reads which problems are there; a UserError leaves everything as it was."""
        module: Any = pl_module
        settings = module.annotation_settings(self.data, str(trainer.precision))
        self._writer = AnnotationWriter(self.output, settings, trainer.global_rank, self.shard_size)
        finished = set(self._writer.done)
        trainer.strategy.barrier("what is on disk is read")  # before any rank adds to it
        module.metrics.num_problems = len(range(trainer.global_rank, len(finished), trainer.world_size))
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        datamodule.is_done = finished.__contains__

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        module: Any = pl_module
        problems: Sequence[AnnotatedProblem] = outputs
        assert self._writer is not None
        for problem in problems:
            if self._writer.add(problem):
                module.metrics.update(problem)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what is left, and the index once every device has."""
        self._close()
        trainer.strategy.barrier("every shard is written")
        if trainer.is_global_zero:
            write_index(self.output)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """An interrupted run keeps what it has computed."""
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
