"""A run that is asked to end (SIGTERM, what `kill` and most schedulers send) ends at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from lightning.pytorch import Callback, LightningModule, Trainer


class EndOnTermination(Callback):
    """Ends a predict run on SIGTERM as an error would, so that every writer closes its file: what is computed stays.

    Lightning notes the signal, for training loops to look at, and predicts to the end. The run exits with 143, as the shell
    reports a process that SIGTERM ended.
    """

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the place of Lightning's handler, which the trainer's teardown takes away in any case."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python sets handlers in the main thread only

        def end(signum: int, _frame: FrameType | None) -> None:
            launcher = trainer.strategy.launcher
            if launcher is not None:
                launcher.kill(signal.Signals(signum))
            raise SystemExit(128 + signum)

        signal.signal(signal.SIGTERM, end)
