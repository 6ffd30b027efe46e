"""Weights & Biases (offline) and MLflow get what a run logs; each is skipped where its package is not installed."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from matplotlib.figure import Figure

from callbacks.logged_results import log_results
from callbacks.training_curves import log_answers
from latent_tts.evaluation.report.tensorboard import final_metrics, hyperparameters
from tests.test_tensorboard import make_metrics, make_records

ROWS = [("1 | 2?", "3", "4")]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with a report and a figure."""
    (tmp_path / "run" / "figures").mkdir(parents=True)
    Figure(figsize=(1, 1)).savefig(tmp_path / "run" / "figures" / "accuracy.png")
    (tmp_path / "run" / "report.md").write_text("# Report\n")
    return tmp_path / "run"


def test_mlflow_has_metrics_hyperparameters_figures_report_and_validation_answers(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("GIT_PYTHON_REFRESH", "quiet")
    logger, metrics = MLFlowLogger(save_dir=str(tmp_path / "ml")), make_metrics(make_records())
    log_results([logger], metrics, run)
    log_answers(logger, ROWS, 7)
    kept = logger.experiment.get_run(logger.run_id).data
    assert {tag: kept.metrics[tag] for tag in final_metrics(metrics)} == pytest.approx(final_metrics(metrics))
    assert kept.params == {name: str(value) for name, value in hyperparameters(metrics).items()}
    artifacts = {one.path for one in logger.experiment.list_artifacts(logger.run_id)}
    assert artifacts == {"accuracy.png", "report.md", "val_answers"}
    (answers,) = logger.experiment.list_artifacts(logger.run_id, "val_answers")
    assert answers.path == "val_answers/step-000007.md"


def test_weights_and_biases_offline_has_metrics_hyperparameters_figures_and_validation_answers(
    run: Path, tmp_path: Path
) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    logger, metrics = WandbLogger(save_dir=tmp_path, offline=True, project="test"), make_metrics(make_records())
    try:
        log_results([logger], metrics, run)
        log_answers(logger, ROWS, 13)
        logged, options = dict(logger.experiment.summary), dict(logger.experiment.config)
    finally:
        wandb.finish()
    assert {tag: logged[tag] for tag in final_metrics(metrics)} == pytest.approx(final_metrics(metrics))
    assert options == hyperparameters(metrics)
    assert logged["figures/accuracy"]["_type"].startswith("images") and logged["val/answers"]["_type"] == "table-file"
