"""The tables of a run in a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from latent_tts.evaluation.report.tables import curve_rows, result_rows
from latent_tts.evaluation.results import Metrics
from latent_tts.evaluation.wording import Finding, facts

if TYPE_CHECKING:
    from rich.table import Table


def console_tables(metrics: Metrics) -> list[Table]:
    """Accuracy over k, and every strategy at its full budget; each interval stands below its value."""
    roomy = int(len(metrics["coverage"]) <= 5)  # else intervals are rounded, which fits 64 rollouts in
    over_k = curve_rows(metrics, "\n", decimals=roomy)
    return [
        _table("Accuracy in % after k rollouts, 95 % intervals below", *over_k, padding=roomy),
        _table("Every strategy at its full budget", *result_rows(metrics, "\n"), padding=0),
    ]


def print_tables(metrics: Metrics, output: Path | None, diagnoses: Iterable[Finding] = ()) -> None:
    """The tables, the facts below them, what is wrong and what to try, and where the files are, if anywhere."""
    from rich.console import Console

    console = Console(highlight=False)
    for table in console_tables(metrics):
        console.print()
        console.print(table)
    console.print()
    for line in facts(metrics):
        console.print(line)
    for one in diagnoses:
        console.print(f"\n{one.name}: {one.sentence}\nTo try: {one.advice}", markup=False)
    if output is not None:
        console.print(
            f"files: {output}/ (report.html, report.md, metrics.json, predictions/, tensorboard/)", soft_wrap=True
        )


def _table(title: str, header: list[str], rows: list[list[str]], padding: int) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE, padding=(0, padding))
    for name in header:
        table.add_column(name, justify="left" if name == "" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(_dim_second_line, row))
    return table


def _dim_second_line(text: str) -> str:
    first, newline, second = text.partition("\n")
    return f"{first}\n[dim]{second}[/dim]" if newline else first
