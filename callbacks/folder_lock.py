"""One run at a time in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from lightning.pytorch import Callback, LightningModule, Trainer

from latent_tts.errors import UserError
from latent_tts.files.locks import lock

LOCK_FILE = ".lock"


class OneRunAtATime(Callback):
    """Refuses a run in whose folder another one works.

    Rank 0 holds a lock on OUTPUT/.lock while the run lasts. The system gives it back however the process ends, so that a file
    that a killed run leaves is in nobody's way. A folder that is not there yet is made, and locked, when the run is accepted:
    when everything that can be refused has been.

    Args:
        output: The run's folder.
    """

    def __init__(self, output: str | Path) -> None:
        self.output = Path(output)
        self._file: IO[str] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.is_global_zero and self.output.is_dir():
            self._take()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_before_others_write(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_before_others_write(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    def _take_before_others_write(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            self.output.mkdir(parents=True, exist_ok=True)
            self._take()
        trainer.strategy.barrier("the folder is this run's")

    def _take(self) -> None:
        if self._file is not None:
            return
        try:
            file = (self.output / LOCK_FILE).open("a")
        except OSError:
            return  # what cannot be written to is refused by who writes there
        if not lock(file):
            file.close()
            raise UserError(f"Another run is working in {self.output}: wait for it, or use another --output.")
        self._file = file

    def _release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
