"""The curves of a run, for TensorBoard, in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.logger import _convert_params
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from latent_tts.evaluation.report.event_files import add_hyperparameters
from latent_tts.evaluation.settings import flatten


class RunCurves(TensorBoardLogger):
    """TensorBoard's files in `FOLDER/tensorboard`, made when a run begins: one that is refused while it is set up leaves none.

    The hyperparameters of a training stand in HPARAMS beside the latest values of its metrics; no value is made up for them.

    Args:
        folder: Of the run.
        metrics: Tags that HPARAMS shows.
    """

    def __init__(self, folder: Path, metrics: Sequence[str] = ()) -> None:
        super().__init__(folder, name="tensorboard", version="", default_hp_metric=False)
        self._metrics = list(metrics)
        self._has_begun = False

    @property
    def experiment(self) -> Any:
        """TensorBoard's writer; None before the run begins, when Lightning asks for it to see that it is there."""
        return super().experiment if self._has_begun else None

    @rank_zero_only
    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        """The first that Lightning logs of a training, after everything was set up."""
        self._has_begun = True
        super().log_hyperparams(params, metrics, step)
        add_hyperparameters(
            self.experiment, self._sanitize_params(flatten(_convert_params(self.hparams))), self._metrics
        )

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """The first that is logged of an evaluation."""
        self._has_begun = True
        super().log_metrics(metrics, step)

    @rank_zero_only
    def save(self) -> None:
        """Writes what has been logged, and hyperparameters where there are some."""
        if self._has_begun and self.hparams:
            super().save()
        elif self._has_begun:
            self.experiment.flush()
