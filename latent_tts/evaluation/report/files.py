"""The files of a report, functions of metrics and records: metrics.json, report.md, report.html, figures, event files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from latent_tts.evaluation.diagnoses import Diagnosis, diagnose
from latent_tts.evaluation.prediction_files import RunRecords, prediction_files
from latent_tts.evaluation.record_table import table_of
from latent_tts.evaluation.records import Record
from latent_tts.evaluation.report.figure_files import save_figures, to_embed
from latent_tts.evaluation.report.figures import figures
from latent_tts.evaluation.report.html import html_parts
from latent_tts.evaluation.report.markdown import markdown
from latent_tts.evaluation.report.tensorboard import write_tensorboard
from latent_tts.evaluation.results import Metrics
from latent_tts.evaluation.run_folder import METRICS_FILE, read_run
from latent_tts.files.whole import write_whole


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
    pictures = {name: output / path for name, path in saved.items()}
    write_whole(output / "report.md", markdown(metrics, saved, run, found))
    inside = {name: to_embed(path) for name, path in pictures.items()}
    write_whole(output / "report.html", html_parts(metrics, records, inside, found, run))
    write_tensorboard(metrics, pictures, output / "tensorboard", records, found)
    return found
