"""Shows one problem of a run in the terminal: what every strategy chose, and every rollout; or lists problems of one kind.

python evaluate.py inspect results/tiny-colar                     # the problems, by number
python evaluate.py inspect results/tiny-colar --show missed       # those that voting gets wrong although a rollout is right
python evaluate.py inspect results/tiny-colar 12                  # one of them by number, by id, or by a piece of its question
python evaluate.py inspect results/tiny-colar "42 friends on Snapchat"
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from commands.guard import main_guard
from commands.tools import ToolArguments
from latent_tts.errors import UserError


def inspect_run(run: Path, problem: str | None = None, show: str | None = None) -> None:
    """Prints one problem of a run, or a list of them.

    Args:
        run: The folder of an evaluation, finished or not.
        problem: Its id, its number, or a piece of its question; None lists problems.
        show: The kind of problem that is listed, a name of `FILTERS`; None lists all.

    Raises:
        UserError: The folder holds no evaluation or no record, or no one problem is meant.
    """
    from rich.console import Console

    from latent_tts.evaluation.problem_outcomes import ProblemOutcome
    from latent_tts.evaluation.problem_search import find_problem
    from latent_tts.evaluation.remake import ReadRun
    from latent_tts.evaluation.report.problem_console import print_list, print_problem

    read = ReadRun(run)
    strategies, rule = read.strategies, read.answer_rule
    if next(read.records(), None) is None:
        raise UserError(f"{run} holds no record yet: let the evaluation run first.")
    console = Console(highlight=False)
    if problem is None:
        print_list((ProblemOutcome(one, strategies, rule) for one in read.records()), show or "all", console)
    else:
        number, record = find_problem(read.records(), problem, str(run))
        print_problem(number, ProblemOutcome(record, strategies, rule), console)


def main(args: Sequence[str] | None = None) -> None:
    from latent_tts.evaluation.problem_outcomes import FILTERS

    parser = ToolArguments(prog="evaluate.py inspect", description=str(__doc__).partition("\n")[0])
    parser.add_argument("run", type=Path, help="Folder of an evaluation, finished or not.")
    parser.add_argument("problem", nargs="?", help="Its id, its number, or a piece of its question.")
    kinds = "; ".join(f"{name}: {one.label}" for name, one in FILTERS.items())
    parser.add_argument("--show", choices=list(FILTERS), help=f"List the problems of one kind instead ({kinds}).")
    options = parser.parse_args(args)
    if options.problem is not None and options.show is not None:
        raise UserError("--show lists problems, and PROBLEM names one of them: give either of the two.")
    inspect_run(options.run, options.problem, options.show)


if __name__ == "__main__":
    sys.exit(main_guard(main))
