"""Sums up the records of a finished run: metrics.json, report.md with figures, TensorBoard curves and tables on the console."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.logged_results import log_results
from callbacks.prediction_writer import PredictionWriter
from callbacks.protocols import commit_of_problems, evaluation_module
from latent_tts.errors import UserError
from latent_tts.evaluation import report
from latent_tts.evaluation.ranks import done_by_all, parts_for_first
from latent_tts.evaluation.records import rounded
from latent_tts.evaluation.remake import earlier_speed
from lightning_modules.parallel_tts_module import ParallelTTSModule


class ScalingReport(Callback):
    """Writes OUTPUT/metrics.json, report.md, figures/ and tensorboard/ when a run ends, and prints the tables.

    All of them are functions of the records on disk (the throughput aside), and are rewritten by every run that ends. Every rank
    reads its share of the records once, whoever wrote them; rank 0 puts together what they have found.

    Args:
        writer: What has written the records, and knows which there are; it comes before this one.
        data: What the problems are: the data's options.
        console: Whether the tables are printed.
    """

    def __init__(self, writer: PredictionWriter, data: Mapping[str, Any] | None = None, console: bool = True) -> None:
        self.writer = writer
        self.data = dict(data or {})
        self.console = console

    @property
    def output(self) -> Path:
        """The run's folder."""
        return self.writer.output

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = evaluation_module(pl_module)
        trainer.strategy.barrier("all records are in their place")
        metrics = module.empty_metrics()
        held = report.ReportRecords(metrics.choosing(module.evaluator.num_rollouts), module.evaluator.answer_rule)
        share = held.empty_part()
        summary = report.RunSummary(metrics, share)
        done_by_all(lambda: self._read(summary, trainer.global_rank, trainer.world_size))
        summed_up = metrics.compute(module.device)
        self._check(summed_up["num_problems"])
        for part in parts_for_first(share):
            held.extend(part)
        speed = trainer.strategy.reduce(
            torch.tensor(module.rollouts_per_second or 0.0, device=module.device), reduce_op="sum"
        )
        if trainer.is_global_zero:
            self._write(trainer, module, summed_up, float(speed), held)

    def _read(self, summary: report.RunSummary, rank: int, world_size: int) -> None:
        share = self.writer.files.read_share(rank, world_size, self._way_out)
        summary.add_all(record for record, _ in share)

    def _check(self, num_problems: int) -> None:
        """Refuses to report on other problems than the ranks have counted; on all of them."""
        known = self.writer.num_problems
        if known == 0:
            raise UserError("There was no problem to evaluate: check --data.source and --data.limit.")
        if num_problems != known:
            raise UserError(f"{num_problems} problems are read back, of {known} that are done: {self._way_out}.")

    def _write(
        self,
        trainer: Trainer,
        module: ParallelTTSModule,
        metrics: dict[str, Any],
        speed: float,
        held: report.ReportRecords,
    ) -> None:
        data = self.data | commit_of_problems(trainer) | {"fingerprint": metrics.pop("problems_fingerprint")}
        metrics = {"evaluated": module.evaluated() | {"data": data}} | metrics
        metrics |= {"throughput": {"rollouts_per_second": rounded(speed, 4) or earlier_speed(self.output)}}
        diagnoses = report.write_report(metrics, self.output, held)
        log_results(trainer.loggers, metrics, self.output)
        if self.console:
            report.print_tables(metrics, self.output, diagnoses)

    @property
    def _way_out(self) -> str:
        return f"the records are on disk, and `python evaluate.py report {self.output}` sums them up"
