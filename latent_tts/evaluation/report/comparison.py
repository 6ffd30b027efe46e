"""A comparison of runs for people: its table on the console and in report.md, its figures, and comparison.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from latent_tts.evaluation.comparison import Comparison, ComparisonRow
from latent_tts.evaluation.control_diagnoses import diagnose_runs
from latent_tts.evaluation.problem_tables import READING, problem_tables
from latent_tts.evaluation.report.figure_files import save_figures, to_embed
from latent_tts.evaluation.report.figures.comparison import comparison_figures
from latent_tts.evaluation.report.html import comparison_html
from latent_tts.evaluation.report.markdown import diagnoses_section
from latent_tts.files.whole import write_whole

if TYPE_CHECKING:
    from rich.table import Table

COMPARISON_FILE = "comparison.json"

_HEADER = ["", "accuracy in %", "minus baseline", "token steps"]


def write_comparison(comparison: Comparison, output: Path) -> None:
    """Writes OUTPUT/comparison.json, report.md, report.html and figures/ anew."""
    write_whole(output / COMPARISON_FILE, json.dumps(comparison.to_json(), indent=2) + "\n")
    saved = save_figures(comparison_figures(comparison), output / "figures")
    write_whole(output / "report.md", comparison_markdown(comparison, saved))
    inside = {name: to_embed(output / path) for name, path in saved.items()}
    facts, diagnoses = comparison_facts(comparison), diagnose_runs(comparison)
    write_whole(output / "report.html", comparison_html(comparison, inside, facts, diagnoses))


def print_comparison(comparison: Comparison, output: Path | None) -> None:
    """The table, what the runs show together of known failures, and where the files are, if anywhere."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(comparison_table(comparison, narrow=console.width < 72))
    for line in comparison_facts(comparison):
        console.print(line)
    for one in diagnose_runs(comparison):
        console.print(f"\n{one.name}: {one.sentence}\nTo try: {one.advice}", markup=False)
    if output is not None:
        console.print(f"files: {output}/ (report.html, report.md, {COMPARISON_FILE}, figures/)", soft_wrap=True)


def comparison_table(comparison: Comparison, narrow: bool = False) -> Table:
    """A block of rows for each strategy, one for each run; where it is narrow, intervals stand below their values."""
    from rich.box import SIMPLE
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE, padding=(0, 1 - narrow))
    for name in _HEADER:
        table.add_column(name, justify="right" if name else "left", no_wrap=bool(name), overflow="fold")
    for title, rows in _blocks(comparison):
        table.add_row(f"[bold]{escape(title)}[/bold]")
        for row in rows:
            name, *cells = _cells(row, "\n" if narrow else " ")
            table.add_row(escape(f"  {name}"), *cells)
    return table


def comparison_facts(comparison: Comparison) -> list[str]:
    """What was compared with what."""
    left_out = {run.name: run.num_left_out for run in comparison.runs if run.num_left_out}
    base = comparison.baseline_run
    called = "" if base.label == base.name else f" ({base.label})"
    facts = [
        f"{comparison.num_problems} problems, the same in every run; differences are paired, to {base.name}{called}, each run "
        "at its full budget"
    ]
    if left_out:
        counts = ", ".join(f"{count} of {name}" for name, count in left_out.items())
        facts.append(f"left out, as not every run has them: {counts}")
    return facts


def comparison_markdown(comparison: Comparison, figures: Mapping[str, str]) -> str:
    """The text of report.md.

    Args:
        comparison: The runs.
        figures: Name -> path of the figure relative to the report.
    """
    names = [f"- {run.label}: `{run.path.as_posix()}`" for run in comparison.runs]
    parts = [
        "# Comparison of runs",
        "\n".join(names),
        "\n".join(f"- {line}" for line in comparison_facts(comparison)),
        *diagnoses_section(diagnose_runs(comparison)),
        "Accuracy and coverage in percent, differences in points, with 95 % intervals over problems.",
    ]
    for title, rows in _blocks(comparison):
        lines = [
            ["run", *_HEADER[1:]],
            ["---", "---:", "---:", "---:"],
            *(_cells(row, " ", ("(", ")")) for row in rows),
        ]
        parts += [f"## {title}", _markdown_table(lines)]
    for title, (header, cells) in problem_tables(comparison).items():
        parts += [f"## {title}", READING[title], _markdown_table([header, ["---"] * len(header), *cells])]
    parts += [f"![{name}]({path})" for name, path in figures.items()]
    return "\n\n".join(parts) + "\n"


def _markdown_table(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _blocks(comparison: Comparison) -> list[tuple[str, list[ComparisonRow]]]:
    """Title and rows of each strategy."""
    by_title = groupby(comparison.rows(), key=lambda row: _title(row))
    return [(title, list(rows)) for title, rows in by_title]


def _title(row: ComparisonRow) -> str:
    strategy = row.result.strategy
    return strategy.label() if strategy.kind == "search" else strategy.at(None).label()


def _cells(row: ComparisonRow, joint: str, around: tuple[str, str] = ("", "")) -> list[str]:
    """Run, accuracy, difference and token steps as text."""
    opening, closing = around
    accuracy, difference = row.result.accuracy, row.difference
    interval = accuracy.interval()
    budget = row.result.strategy.budget
    at = f" @ {budget}" if row.result.strategy.kind in ("aggregation", "coverage") and budget is not None else ""
    shown = accuracy.percent() + (f"{joint}{opening}{interval}{closing}" if interval else "")
    signed = "" if difference is None else difference.signed(f"{joint}{opening}") + closing
    return [f"{row.run.label}{at}", shown, signed, f"{row.result.token_steps:,.0f}"]
