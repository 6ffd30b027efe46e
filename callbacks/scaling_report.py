"""Sums up the records of a finished run: metrics.json, report.md with figures, TensorBoard curves and tables on the console."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.logged_results import log_results
from callbacks.protocols import commit_of_problems, evaluation_module
from latent_tts.errors import UserError
from latent_tts.evaluation import report
from latent_tts.evaluation.prediction_files import prediction_files, read_records
from latent_tts.evaluation.records import rounded
from latent_tts.evaluation.remake import earlier_speed


class ScalingReport(Callback):
    """Writes OUTPUT/metrics.json, report.md, figures/ and tensorboard/ when a run ends, and prints the tables.

    All of them are functions of the records on disk (the throughput aside), and are rewritten by every run that ends. Every rank
    sums up its share of the records, whoever wrote them.

    Args:
        output: The run's folder.
        data: What the problems are: the data's options.
        console: Whether the tables are printed.
    """

    def __init__(self, output: str | Path, data: Mapping[str, Any] | None = None, console: bool = True) -> None:
        self.output = Path(output)
        self.data = dict(data or {})
        self.console = console

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = evaluation_module(pl_module)
        trainer.strategy.barrier("all records are in their place")
        mine = read_records(prediction_files(self.output), trainer.global_rank, trainer.world_size)
        metrics = module.empty_metrics().count_all(mine).compute(module.device)
        speed = trainer.strategy.reduce(
            torch.tensor(module.rollouts_per_second or 0.0, device=module.device), reduce_op="sum"
        )
        if not trainer.is_global_zero:
            return
        if metrics["num_problems"] == 0:
            raise UserError("There was no problem to evaluate: check --data.source and --data.limit.")
        data = self.data | commit_of_problems(trainer) | {"fingerprint": metrics.pop("problems_fingerprint")}
        metrics = {"evaluated": module.evaluated() | {"data": data}} | metrics
        metrics |= {"throughput": {"rollouts_per_second": rounded(float(speed), 4) or earlier_speed(self.output)}}
        diagnoses = report.write_report(metrics, self.output)
        log_results(trainer.loggers, metrics, self.output)
        if self.console:
            report.print_tables(metrics, self.output, diagnoses)
