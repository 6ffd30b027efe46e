"""Metrics, tables and figures of a run from its records, without a model.

python evaluate.py report results/tiny-colar
python evaluate.py report results/tiny-colar --aggregations '[{name: best_of_n, reduction: last}]' --out results/last
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from commands.guard import main_guard
from commands.tools import ToolArguments
from latent_tts.answers import AnswerRule
from latent_tts.errors import UserError


def report_run(
    run: Path, aggregations: list[Any] | None = None, answer_rule: AnswerRule | None = None, out: Path | None = None
) -> None:
    """Makes the report of a run anew, and prints its tables.

    Args:
        run: The folder of an evaluation, finished or not.
        aggregations: Other ones than the run's.
        answer_rule: Another one than the run's.
        out: Where the files go; by default the run's own folder, and nowhere where something is other than in the run.
    """
    from latent_tts.evaluation.remake import remake_metrics
    from latent_tts.evaluation.report import print_tables, write_report

    metrics = remake_metrics(run, aggregations, answer_rule)
    changed = aggregations is not None or answer_rule is not None
    folder = run if out is None and not changed else out
    if folder is not None:
        write_report(metrics, folder)
    print_tables(metrics, folder)
    if folder is None:
        print(f"{run} is as it was: give --out FOLDER to keep this report.")


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


def main(args: Sequence[str] | None = None) -> None:
    parser = ToolArguments(prog="evaluate.py report", description=str(__doc__).partition("\n")[0])
    parser.add_argument("run", type=Path, help="Folder of an evaluation, finished or not.")
    parser.add_argument(
        "--aggregations", help="Other aggregations than the run's, such as '[majority_voting, hybrid]'."
    )
    parser.add_argument(
        "--answer_rule", choices=get_args(AnswerRule), help="Another rule than the run's of what is right."
    )
    parser.add_argument("--out", type=Path, help="Folder of the files; by default the run's own.")
    options = parser.parse_args(args)
    report_run(options.run, read_aggregations(options.aggregations), options.answer_rule, options.out)


if __name__ == "__main__":
    sys.exit(main_guard(main))
