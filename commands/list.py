"""Lists the runs of folders with their main figures: `python evaluate.py list [FOLDER ...]`.

python evaluate.py list
python evaluate.py list results --sort best
"""

from __future__ import annotations

import json
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.guard import main_guard
from commands.tools import ToolArguments
from latent_tts.errors import UserError

if TYPE_CHECKING:
    from latent_tts.evaluation.results import Cell
    from latent_tts.evaluation.run_list import ListedRun, Listing

DEFAULT_FOLDERS = ("results", "runs")
_FIGURES = ("greedy", "voting", "best", "coverage")
_NUMBERS = ("num_problems", "num_rollouts", "steps")
_TEXTS = ("name", "kind", "backbone", "sampler", "data")
SORTS = ("date", *_TEXTS, *_NUMBERS, *_FIGURES)


def list_folders(folders: Sequence[Path], sort: str = "date", as_json: bool = False) -> None:
    """Prints the runs.

    Args:
        folders: Where to look; none stands for results/ and runs/, as far as they are there.
        sort: By what; dates and figures go from the last or largest down, texts up.
        as_json: Whether to print JSON in place of a table.
    """
    from latent_tts.evaluation.run_list import list_runs

    there = [Path(name) for name in DEFAULT_FOLDERS if Path(name).is_dir()]
    if not folders and not there:
        raise UserError("There is neither results/ nor runs/ here: name the folder that holds your runs.")
    listing = list_runs(folders or there)
    runs = sorted(listing.runs, key=lambda run: run.name)
    runs.sort(key=_key(sort), reverse=sort not in _TEXTS)
    if as_json:
        print(json.dumps({"runs": [run.to_json() for run in runs], "strange": list(listing.strange)}, indent=2))
    else:
        _print(runs, listing)


def _key(sort: str) -> Callable[[ListedRun], Any]:
    """What is not known comes last."""

    def key(run: ListedRun) -> Any:
        value = getattr(run, sort)
        if sort in _FIGURES:
            value = None if value is None else value.value
        if sort in _TEXTS:
            return (value is None, value or "")
        return (value is not None, value or (0 if sort != "date" else ""))

    return key


def _print(runs: Sequence[ListedRun], listing: Listing) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.padding import Padding

    console = Console(highlight=False)
    for run in runs:
        console.print(f"[bold]{escape(run.name)}[/bold]  {escape(_when(run))}")
        for line in _lines(run):
            console.print(Padding(escape(line), (0, 0, 0, 2)))
    for sentence in listing.strange:
        console.print(escape(sentence), soft_wrap=True)
    if not runs:
        console.print("no run here")


def _when(run: ListedRun) -> str:
    date = (run.date or "").replace("T", " ")[:16]
    return f"{date}{'' if run.finished else ' (not finished)'}".strip()


def _lines(run: ListedRun) -> Iterator[str]:
    """What was run, and what came out."""
    problems = None if run.num_problems is None else f"{run.num_problems} problems"
    if run.kind == "evaluation":
        yield _joined(run.backbone, run.sampler, f"N = {run.num_rollouts}", run.data, problems)
        names = {"greedy": "greedy", "voting": "voting", "best": f"best: {run.best_strategy}", "coverage": "coverage"}
        yield from filter(None, [_joined(*(_figure(name, getattr(run, key)) for key, name in names.items()))])
    elif run.kind == "training":
        steps = None if run.steps is None else f"{run.steps} steps"
        yield _joined("training", run.module, run.backbone, steps, run.monitored)
    elif run.kind == "annotation":
        yield _joined("annotation", run.backbone, run.sampler, f"N = {run.num_rollouts}", run.data, problems)
    else:
        yield "no evaluation, training or annotation"


def _joined(*parts: str | None) -> str:
    return " · ".join(part for part in parts if part)


def _figure(name: str, cell: Cell | None) -> str | None:
    return None if cell is None else f"{name} {cell.text(' (')}{')' if cell.interval() else ''}"


def main(args: Sequence[str] | None = None) -> None:
    summary, _, examples = str(__doc__).partition("\n")
    parser = ToolArguments(
        prog="evaluate.py list",
        description=summary,
        epilog=f"examples:{examples}",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders", type=Path, nargs="*", metavar="FOLDER", help="Where to look; by default results/ and runs/."
    )
    parser.add_argument(
        "--sort", choices=SORTS, default="date", help="By what: figures and dates from the largest down, texts up."
    )
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    options = parser.parse_args(args)
    list_folders(options.folders, options.sort, options.json)


if __name__ == "__main__":
    sys.exit(main_guard(main))
