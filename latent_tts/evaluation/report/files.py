"""The files of a report, functions of metrics and records: metrics.json, report.md, report.html, figures, event files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_tts.evaluation.diagnoses import Diagnosis, diagnose
from latent_tts.evaluation.prediction_files import RunRecords, prediction_files
from latent_tts.evaluation.record_table import table_of
from latent_tts.evaluation.records import Record
from latent_tts.evaluation.report.figure_files import save_figures, to_embed
from latent_tts.evaluation.report.figures import figures
from latent_tts.evaluation.report.html import html_parts
from latent_tts.evaluation.report.markdown import markdown
from latent_tts.evaluation.results import Metrics, curves, results
from latent_tts.evaluation.run_folder import METRICS_FILE, read_run, write_whole

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def write_report(
    metrics: Metrics,
    output: Path,
    records: Iterable[Record] | None = None,
    run: Mapping[str, Any] | None = None,
) -> list[Diagnosis]:
    """Writes OUTPUT/metrics.json, report.md, report.html, figures/ and tensorboard/ anew; equal files for equal arguments.

    Args:
        metrics: The content of metrics.json.
        output: The run's folder, or another one.
        records: What the metrics were made from, judged and chosen from as the metrics say; can be gone through more than once.
            None takes those of the folder, if there are any.
        run: The content of run.json; None takes the folder's.

    Returns:
        What the run shows of known failures of the method, as both reports say it.
    """
    records = RunRecords(output) if records is None and prediction_files(output) else records
    run = read_run(output) if run is None else run
    write_whole(output / METRICS_FILE, json.dumps(metrics, indent=2) + "\n")
    table = None if records is None else table_of(records)
    drawn, found = figures(metrics, table), diagnose(metrics, table)
    saved = save_figures(drawn, output / "figures")
    write_whole(output / "report.md", markdown(metrics, saved, run, found))
    inside = {name: to_embed(output / path) for name, path in saved.items()}
    write_whole(output / "report.html", html_parts(metrics, records, inside, found, run))
    write_tensorboard(metrics, drawn, output / "tensorboard")
    return found


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
