"""The curves of a run, for TensorBoard, in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger


class RunCurves(TensorBoardLogger):
    """TensorBoard's files in `FOLDER/tensorboard`, made when a run begins: one that is refused while it is set up leaves none.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="tensorboard", version="")
        self._has_begun = False

    @property
    def experiment(self) -> Any:
        """TensorBoard's writer; None before the run begins, when Lightning asks for it to see that it is there."""
        return super().experiment if self._has_begun else None

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The first that Lightning logs, after everything was set up."""
        self._has_begun = True
        super().log_hyperparams(*args, **kwargs)
