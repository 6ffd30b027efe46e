"""Turns the metrics of a finished run into metrics.json, report.md with figures, TensorBoard curves and tables on the console."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.protocols import evaluation_module
from latent_tts.errors import UserError
from latent_tts.evaluation import report
from latent_tts.evaluation.records import rounded
from latent_tts.evaluation.run_folder import write_whole


class ScalingReport(Callback):
    """Writes OUTPUT/metrics.json, report.md, figures/ and tensorboard/ when a run ends, and prints the tables.

    All of them are functions of the metrics (the throughput aside), and are rewritten by every run that ends.

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
        metrics = module.metrics.compute(module.device)
        speed = trainer.strategy.reduce(
            torch.tensor(module.rollouts_per_second or 0.0, device=module.device), reduce_op="sum"
        )
        if not trainer.is_global_zero:
            return
        if metrics["num_problems"] == 0:
            raise UserError("There was no problem to evaluate: check --data.source and --data.limit.")
        data = self.data | {"fingerprint": metrics.pop("problems_fingerprint")}
        metrics = {"evaluated": module.evaluated() | {"data": data}} | metrics
        metrics |= {"throughput": {"rollouts_per_second": rounded(float(speed), 4) or self._earlier_speed()}}
        self._write(metrics)
        if self.console:
            print_tables(metrics, self.output)

    def _earlier_speed(self) -> float | None:
        """The throughput that metrics.json holds: a run that finds everything done measures none."""
        path = self.output / "metrics.json"
        return json.loads(path.read_text())["throughput"]["rollouts_per_second"] if path.exists() else None

    def _write(self, metrics: dict[str, Any]) -> None:
        write_whole(self.output / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        figures = report.figures(metrics)
        paths = report.save_figures(figures, self.output / "figures")
        write_whole(self.output / "report.md", report.markdown(metrics, paths))
        write_tensorboard(metrics, figures, self.output / "tensorboard")


def write_tensorboard(metrics: Mapping[str, Any], figures: Mapping[str, Any], folder: Path) -> None:
    """Curves over k as scalars with k as the step, search results with their token steps as the step, and the figures."""
    from torch.utils.tensorboard import SummaryWriter

    for earlier in folder.glob("events.out.tfevents.*"):
        earlier.unlink()  # they would be drawn beside these
    with SummaryWriter(str(folder)) as writer:
        for curve, cells in report.curves(metrics).items():
            tag = curve.method if curve.kind == "coverage" else f"accuracy/{curve.method}"
            for k, cell in cells.items():
                writer.add_scalar(tag, cell.value, k)
                for bound, value in (("low", cell.low), ("high", cell.high)):
                    if value is not None:
                        writer.add_scalar(f"interval_{bound}/{curve.method}", value, k)
        for result in report.results(metrics):
            tag = f"full_budget/{result.strategy.key.replace('@', '_')}"
            writer.add_scalar(tag, result.accuracy.value, int(result.token_steps))
        for step, value in enumerate(metrics["diversity"]["per_step"], start=1):
            if value is not None:
                writer.add_scalar("diversity", value, step)
        writer.add_scalar("invalid_answer_rate", metrics["invalid_answer_rate"], metrics["num_rollouts"])
        for name, figure in figures.items():
            writer.add_figure(name, figure, close=False)


def print_tables(metrics: Mapping[str, Any], output: Path) -> None:
    """The tables, the facts below them, and where the files are."""
    from rich.console import Console

    console = Console(highlight=False)
    for table in report.console_tables(metrics):
        console.print()
        console.print(table)
    console.print()
    for line in report.facts(metrics):
        console.print(line)
    console.print(f"files: {output}/ (report.md, metrics.json, predictions/, tensorboard/)", soft_wrap=True)
