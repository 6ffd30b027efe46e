"""report.html of several runs: one table of all strategies and runs with their paired differences, and the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from latent_tts.evaluation.comparison import Comparison, ComparisonRow
from latent_tts.evaluation.problem_tables import READING, problem_tables
from latent_tts.evaluation.report.figures import COMPARISON_CAPTIONS
from latent_tts.evaluation.report.html.document import document
from latent_tts.evaluation.report.html.markup import Markup, cell, element, joined, table
from latent_tts.evaluation.report.html.sections import definitions, diagnoses_section, figures_section, prose
from latent_tts.evaluation.report.html.tables import IntervalScale, signed
from latent_tts.evaluation.wording import Finding

_READING = """In percent, with 95 % intervals over problems; `minus baseline` is the paired difference in points, problem by \
problem, each run at its full budget. A difference in bold has an interval that leaves 0 out. A column's name sorts by it."""


def comparison_html(
    comparison: Comparison,
    figures: Mapping[str, bytes] | None = None,
    facts: Sequence[str] = (),
    diagnoses: Sequence[Finding] = (),
    captions: Mapping[str, str] = COMPARISON_CAPTIONS,
) -> str:
    """The text of report.html for several runs; equal for equal arguments.

    Args:
        comparison: The runs on the same problems.
        figures: Name -> the content of an SVG or PNG file.
        facts: Lines on what was compared with what.
        diagnoses: What the runs show together of known failures of the method.
        captions: Name of a figure -> what it shows.
    """
    lines = element("ul", *(element("li", line) for line in facts), class_="facts")
    body = {
        "Runs": joined([definitions({run.label: run.path.as_posix() for run in comparison.runs}), lines]),
        "Diagnoses": diagnoses_section(diagnoses, figures or ()),
        "Results": joined([prose(_READING), _table(comparison)]),
        **{title: _problem_table(title, *found) for title, found in problem_tables(comparison).items()},
        "Figures": figures_section(figures or {}, captions),
    }
    return "".join(document(f"{len(comparison.runs)} runs on {comparison.num_problems:,} problems", body))


def _table(comparison: Comparison) -> Markup:
    rows = list(comparison.rows())
    scale = IntervalScale([row.result.accuracy for row in rows])
    header = ["strategy", "run", "accuracy %", "95 % interval", scale.label, "minus baseline", "token steps"]
    base = {
        row.result.strategy.at(None): row.result.accuracy.value for row in rows if row.run is comparison.baseline_run
    }
    cells = [_row(row, scale, base.get(row.result.strategy.at(None))) for row in rows]
    return table("comparison", header, cells, "Every strategy of every run, each at its full budget")


def _problem_table(title: str, header: list[str], rows: list[list[str]]) -> Markup:
    cells = [[cell(text) for text in row] for row in rows]
    return joined([prose(READING[title]), table(title.split()[0].lower(), header, cells, title)])


def _row(row: ComparisonRow, scale: IntervalScale, base: float | None) -> list[Markup]:
    accuracy, difference = row.result.accuracy, row.difference
    return [
        cell(row.result.strategy.label(), heading=True),
        cell(row.run.label),
        cell(accuracy.percent(), accuracy.value),
        cell(accuracy.interval(), accuracy.bounds[0]),
        cell(scale.drawn(accuracy, base), accuracy.value),
        cell("", "") if difference is None else cell(signed(difference), difference.value),
        cell(f"{row.result.token_steps:,.0f}", row.result.token_steps),
    ]
