"""Metrics, tables and figures of a run from its records, or of several runs side by side, without a model.

python evaluate.py report results/tiny-colar
python evaluate.py report results/tiny-colar --aggregations '[{name: best_of_n, reduction: last}]' --out results/last
python evaluate.py report results/sigma-0.3 results/sigma-0.5 --out results/noise
"""

from __future__ import annotations

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from commands.guard import main_guard
from commands.tools import ToolArguments, folder
from latent_tts.answers import AnswerRule
from latent_tts.errors import UserError


def report_run(
    run: Path,
    aggregations: list[Any] | None = None,
    answer_rule: AnswerRule | None = None,
    ks: list[int] | None = None,
    out: Path | None = None,
) -> None:
    """Makes the report of a run anew, and prints its tables.

    Args:
        run: The folder of an evaluation, finished or not.
        aggregations: Other ones than the run's.
        answer_rule: Another one than the run's.
        ks: Other numbers of rollouts than the run's.
        out: Where the files go; by default the run's own folder, and nowhere where something is other than in the run.
    """
    from latent_tts.evaluation.remake import Reading, ReadRun
    from latent_tts.evaluation.report import empty_summary, print_tables, summarise, write_report

    reading = Reading(aggregations, answer_rule, ks)
    read = ReadRun(run, reading)
    folder = run if out is None and not reading.changed else out
    summary = summarise(read, empty_summary(read, with_files=folder is not None))
    metrics = read.content(summary.metrics)
    diagnoses = [] if folder is None else write_report(metrics, folder, summary.held, read.described)
    print_tables(metrics, folder, diagnoses)
    if folder is None:
        print(f"{run} is as it was: give --out FOLDER to keep this report.")


def report_runs(
    runs: Sequence[Path],
    aggregations: list[Any] | None = None,
    answer_rule: AnswerRule | None = None,
    ks: list[int] | None = None,
    baseline: Path | None = None,
    common: bool = False,
    out: Path | None = None,
) -> None:
    """Compares runs, prints the table, and writes the files of the comparison where a folder is given.

    Args:
        runs: Folders of evaluations.
        aggregations: Other ones than the runs'.
        answer_rule: Another one than the runs'.
        ks: Other numbers of rollouts than the runs'.
        baseline: The run that the others are compared with; by default the first.
        common: Whether problems that not all runs have are left out.
        out: Where the files go.
    """
    from latent_tts.evaluation.comparison import compare
    from latent_tts.evaluation.remake import Reading
    from latent_tts.evaluation.report.comparison import print_comparison, write_comparison

    comparison = compare(runs, Reading(aggregations, answer_rule, ks), baseline, common)
    if out is not None:
        write_comparison(comparison, out)
    print_comparison(comparison, out)
    if out is None:
        print("Nothing was written: give --out FOLDER to keep this comparison with its figures.")


def read_aggregations(text: str | None) -> list[Any] | None:
    """A YAML list of names, or of names with options.

    Raises:
        UserError: It is something else.
    """
    if text is None:
        return None
    try:
        parts = yaml.safe_load(text)
    except yaml.YAMLError:
        parts = None
    if isinstance(parts, list) and all(isinstance(part, (str, dict)) for part in parts):
        return parts
    raise UserError(f"--aggregations must be a list such as '[majority_voting, best_of_n]', got {text!r}.")


def read_ks(text: str | None) -> list[int] | None:
    """Whole numbers between commas.

    Raises:
        UserError: It is something else.
    """
    if text is None:
        return None
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise UserError(f"--ks must be numbers of rollouts such as 1,2,4,8, got {text!r}.") from error


def main(args: Sequence[str] | None = None) -> None:
    summary, _, examples = str(__doc__).partition("\n")
    parser = ToolArguments(
        prog="evaluate.py report",
        description=summary,
        epilog=f"examples:{examples}",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="Folder of an evaluation, finished or not; several are compared.",
    )
    parser.add_argument(
        "--aggregations", help="Other aggregations than the run's, such as '[majority_voting, hybrid]'."
    )
    parser.add_argument(
        "--answer_rule", choices=get_args(AnswerRule), help="Another rule than the run's of what is right."
    )
    parser.add_argument("--ks", help="Numbers of rollouts of the curves, such as 1,2,4,8; the last is the full budget.")
    parser.add_argument(
        "--baseline", type=Path, metavar="RUN", help="The run that others are compared with; by default the first."
    )
    parser.add_argument("--common", action="store_true", help="Compare on the problems that all runs have.")
    parser.add_argument(
        "--out", type=folder, help="Folder of the files; by default the run's own, and none for several runs."
    )
    options = parser.parse_args(args)
    parts, ks = read_aggregations(options.aggregations), read_ks(options.ks)
    if len(options.runs) > 1:
        report_runs(options.runs, parts, options.answer_rule, ks, options.baseline, options.common, options.out)
    elif options.baseline is not None or options.common:
        raise UserError("--baseline and --common compare several runs: name the others too.")
    else:
        report_run(options.runs[0], parts, options.answer_rule, ks, options.out)


if __name__ == "__main__":
    sys.exit(main_guard(main))
