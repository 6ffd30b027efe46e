"""The files of a report: metrics.json, report.md, figures and TensorBoard's curves, all of them functions of the metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_tts.evaluation.report.figures import figures, save_figures
from latent_tts.evaluation.report.markdown import markdown
from latent_tts.evaluation.results import Metrics, curves, results
from latent_tts.evaluation.run_folder import METRICS_FILE, write_whole

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def write_report(metrics: Metrics, output: Path) -> None:
    """Writes OUTPUT/metrics.json, report.md, figures/ and tensorboard/ anew."""
    write_whole(output / METRICS_FILE, json.dumps(metrics, indent=2) + "\n")
    drawn = figures(metrics)
    write_whole(output / "report.md", markdown(metrics, save_figures(drawn, output / "figures")))
    write_tensorboard(metrics, drawn, output / "tensorboard")


def write_tensorboard(metrics: Metrics, drawn: Mapping[str, Any], folder: Path) -> None:
    """Curves over k as scalars with k as the step, search results with their token steps as the step, and the figures."""
    from torch.utils.tensorboard import SummaryWriter

    for earlier in folder.glob("events.out.tfevents.*"):
        earlier.unlink()  # they would be drawn beside these
    with SummaryWriter(str(folder)) as writer:
        _add_scalars(writer, metrics)
        for name, figure in drawn.items():
            writer.add_figure(name, figure, close=False)


def _add_scalars(writer: SummaryWriter, metrics: Metrics) -> None:
    for curve, cells in curves(metrics).items():
        tag = curve.method if curve.kind == "coverage" else f"accuracy/{curve.method}"
        for k, cell in cells.items():
            writer.add_scalar(tag, cell.value, k)
            for bound, value in zip(("low", "high"), cell.bounds, strict=True):
                writer.add_scalar(f"interval_{bound}/{curve.method}", value, k)
    for result in results(metrics):
        tag = f"full_budget/{result.strategy.key.replace('@', '_')}"
        writer.add_scalar(tag, result.accuracy.value, int(result.token_steps))
    for step, value in enumerate(metrics["diversity"]["per_step"], start=1):
        if value is not None:
            writer.add_scalar("diversity", value, step)
    writer.add_scalar("invalid_answer_rate", metrics["invalid_answer_rate"], metrics["num_rollouts"])
