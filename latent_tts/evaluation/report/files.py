"""The files of a report, functions of metrics and records: metrics.json, report.md, report.html, figures, event files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from latent_tts.answers import AnswerRule
from latent_tts.evaluation.diagnoses import Diagnosis, diagnose
from latent_tts.evaluation.prediction_files import prediction_files
from latent_tts.evaluation.problem_outcomes import answer_rule, chosen_by
from latent_tts.evaluation.record_reading import read_records
from latent_tts.evaluation.record_table import TableRows
from latent_tts.evaluation.records import Record
from latent_tts.evaluation.report.figure_files import save_figures, to_embed
from latent_tts.evaluation.report.figures import figures
from latent_tts.evaluation.report.html import BYTE_LIMIT, PART_ROOM, PageProblems, html_parts
from latent_tts.evaluation.report.markdown import markdown
from latent_tts.evaluation.report.tensorboard import ShownRecords, write_tensorboard
from latent_tts.evaluation.results import Metrics
from latent_tts.evaluation.run_folder import METRICS_FILE, read_run
from latent_tts.evaluation.strategies import Strategy
from latent_tts.files.whole import write_whole


class ReportRecords:
    """What the files of a report hold of the records, which are taken in one at a time.

    Args:
        strategies: Those whose choices are shown.
        rule: When an answer equals the gold one.
        byte_limit: Of the compressed problems of the page.
    """

    def __init__(self, strategies: Sequence[Strategy], rule: AnswerRule, byte_limit: int = BYTE_LIMIT) -> None:
        self._shows = (strategies, rule)
        self._byte_limit = byte_limit
        self.rows, self.problems, self.shown = TableRows(), PageProblems(strategies, rule, byte_limit), ShownRecords()

    def empty_part(self) -> ReportRecords:
        """What takes in some of the records, to be taken in by this."""
        return ReportRecords(*self._shows, PART_ROOM * self._byte_limit)

    def add(self, record: Record) -> None:
        """Takes one problem in, judged and chosen from as the metrics say."""
        self.rows.add(record)
        self.problems.add(record)
        self.shown.add(record)

    def extend(self, later: ReportRecords) -> None:
        """Takes in the problems that follow, of an `empty_part`: what is held is that of all of them one by one."""
        self.rows.extend(later.rows)
        self.problems.extend(later.problems)
        self.shown.extend(later.shown)


def records_of(metrics: Metrics, records: Iterable[Record] | ReportRecords) -> ReportRecords:
    """What a report holds of records, which are gone through once; what it holds already is returned as it is."""
    if isinstance(records, ReportRecords):
        return records
    held = ReportRecords(chosen_by(metrics), answer_rule(metrics))
    for record in records:
        held.add(record)
    return held


def write_report(
    metrics: Metrics,
    output: Path,
    records: Iterable[Record] | ReportRecords | None = None,
    run: Mapping[str, Any] | None = None,
) -> list[Diagnosis]:
    """Writes OUTPUT/metrics.json, report.md, report.html, figures/ and tensorboard/ anew; equal files for equal arguments.

    Args:
        metrics: The content of metrics.json.
        output: The run's folder, or another one.
        records: What the metrics were made from, judged and chosen from as the metrics say, gone through once; or what a
            report holds of them. None takes those of the folder, if there are any.
        run: The content of run.json; None takes the folder's.

    Returns:
        What the run shows of known failures of the method, as both reports say it.
    """
    files = prediction_files(output)
    records = read_records(files) if records is None and files else records
    run = read_run(output) if run is None else run
    write_whole(output / METRICS_FILE, json.dumps(metrics, indent=2) + "\n")
    held = None if records is None else records_of(metrics, records)
    table = None if held is None else held.rows.table()
    drawn, found = figures(metrics, table), diagnose(metrics, table)
    saved = save_figures(drawn, output / "figures")
    pictures = {name: output / path for name, path in saved.items()}
    write_whole(output / "report.md", markdown(metrics, saved, run, found))
    inside = {name: to_embed(path) for name, path in pictures.items()}
    write_whole(
        output / "report.html", html_parts(metrics, None if held is None else held.problems, inside, found, run)
    )
    write_tensorboard(metrics, pictures, output / "tensorboard", None if held is None else held.shown, found)
    return found
