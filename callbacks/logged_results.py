"""The results of a finished run for the loggers that do not read its folder, as TensorBoard does."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from latent_tts.evaluation.report.tensorboard import final_metrics, hyperparameters
from latent_tts.evaluation.results import Metrics


def log_results(loggers: Iterable[Logger], metrics: Metrics, output: Path) -> None:
    """Logs what was evaluated as hyperparameters and what came out as metrics; Weights & Biases and MLflow get the figures too.

    Args:
        loggers: Of the trainer; TensorBoard is left out, whose event file is part of the report.
        metrics: The content of metrics.json.
        output: The run's folder, with its report.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            continue
        logger.log_hyperparams(hyperparameters(metrics))
        logger.log_metrics(final_metrics(metrics), step=metrics["num_problems"])
        figures = sorted((output / "figures").glob("*.png"))
        if isinstance(logger, WandbLogger):
            for path in figures:
                logger.log_image(f"figures/{path.stem}", [str(path)], step=metrics["num_problems"])
        if isinstance(logger, MLFlowLogger):
            for path in [*figures, output / "report.md"]:
                logger.experiment.log_artifact(logger.run_id, str(path))
        logger.save()
