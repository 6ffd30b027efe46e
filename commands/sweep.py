"""Evaluates every combination of some options' values, a run each, and compares them: `python evaluate.py sweep`.

python evaluate.py sweep --vary model.sampler.sigma=0.3,0.5,0.7 --vary model.seed=0,1 --config FILE [options of evaluate.py]
python evaluate.py sweep --vary data.source=gsm8k,multiarith --vary 'model.search=[[beam_search], []]' --dry_run

Killed, it goes on by the same command.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from commands.evaluations import as_typed, run_evaluation
from commands.guard import main_guard
from commands.launch import started_processes
from commands.report import report_runs
from commands.tools import ToolArguments
from latent_tts.errors import UserError
from latent_tts.evaluation.run_labels import last_words

FOLDER = Path("results/sweep")


@dataclass(frozen=True)
class Varied:
    """An option and the values it takes in turn."""

    option: str
    values: tuple[Any, ...]

    @classmethod
    def read(cls, text: str) -> Varied:
        """Reads `model.sampler.sigma=0.3,0.5` or `model.search=[[beam_search], []]`.

        Raises:
            UserError: It is something else, or names a value twice.

        >>> Varied.read("model.sampler.sigma=0.3,0.5")
        Varied(option='model.sampler.sigma', values=(0.3, 0.5))
        """
        option, equals, given = text.lstrip("-").partition("=")
        try:
            values = yaml.safe_load(given if given.startswith("[") else f"[{given}]")
        except yaml.YAMLError:
            values = None
        if not option or not equals or not isinstance(values, list) or not values:
            raise UserError(f"--vary must be OPTION=VALUE,VALUE such as model.sampler.sigma=0.3,0.5, got {text!r}.")
        if len({json.dumps(value) for value in values}) < len(values):
            raise UserError(f"--vary {option} names a value twice.")
        return cls(option, tuple(values))


@dataclass(frozen=True)
class Point:
    """One combination of values."""

    name: str
    """Of its folder."""
    arguments: tuple[str, ...]
    """Of `evaluate.py`."""
    data: str
    """The values that choose the problems; only points on the same problems are compared."""


def sweep_points(varied: Sequence[Varied], shared: Sequence[str], folder: Path) -> list[Point]:
    """A point for every combination, the last option varying fastest.

    Args:
        varied: The options, each once.
        shared: Arguments that all evaluations have.
        folder: That of the sweep, in which each point has its own.

    Raises:
        UserError: Two of them vary one option, or two points would share a folder.
    """
    options = [one.option for one in varied]
    if len(set(options)) < len(options):
        raise UserError("Two --vary name the same option: give all of its values in one.")
    if clash := next((one for one in shared if one.partition("=")[0].lstrip("-") in options), None):
        raise UserError(f"{clash.partition('=')[0]} is varied by --vary: leave one of the two out.")
    points = []
    for values in itertools.product(*(one.values for one in varied)):
        written = [value if isinstance(value, str) else json.dumps(value) for value in values]
        parts = {one: f"{last_words(one, options)}={_plain(text)}" for one, text in zip(options, written, strict=True)}
        name, data = ",".join(parts.values()), ",".join(part for one, part in parts.items() if one.startswith("data."))
        given = [f"--{one}={text}" for one, text in zip(options, written, strict=True)]
        points.append(Point(name, (*shared, *given, f"--output={folder / name}"), data))
    names = [point.name for point in points]
    if len(set(names)) < len(names):
        raise UserError(
            "Two of the varied values make the same folder name: vary values that differ in letters or digits."
        )
    return points


def _plain(text: str) -> str:
    """A value as part of a folder's name."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-") or "none"


def check_points(points: Sequence[Point]) -> None:
    """Parses the options of every point before the first is evaluated.

    Raises:
        UserError: An option is wrong.
    """
    from commands.evaluate import EvaluationCLI

    class Parsed(EvaluationCLI):
        def instantiate_classes(self) -> None:
            self.check()

    for point in points:
        Parsed(list(point.arguments))


def sweep(varied: Sequence[Varied], shared: Sequence[str], folder: Path = FOLDER, dry_run: bool = False) -> None:
    """Evaluates every point and writes their comparison into the sweep's folder.

    Args:
        varied: The options that vary.
        shared: Arguments of `evaluate.py` that all points have.
        folder: Of the sweep.
        dry_run: Whether the commands are shown, and nothing is run.

    Raises:
        UserError: An option is wrong, an evaluation failed, or this is one of several processes.
    """
    points = sweep_points(varied, shared, folder)
    started = started_processes(os.environ)
    if started is not None and started.processes > 1:
        raise UserError(
            f"A sweep starts its evaluations itself, and {started.launcher} has started {started.processes} processes of it: "
            "start it once with --trainer.devices, or give every point of --dry_run a job of its own."
        )
    check_points(points)
    for number, point in enumerate(points, 1):
        print(f"[{number}/{len(points)}] {as_typed(point.arguments)}", flush=True)
        if not dry_run:
            run_evaluation(point.name, point.arguments)
    if not dry_run:
        compare_points(points, folder)


def compare_points(points: Sequence[Point], folder: Path) -> None:
    """Compares the points that have their problems in common, in the sweep's folder or, of several sets, in one for each."""
    sets: dict[str, list[Path]] = {}
    for point in points:
        sets.setdefault(point.data, []).append(folder / point.name)
    for data, runs in sets.items():
        if len(runs) > 1:
            report_runs(runs, out=folder if len(sets) == 1 else folder / f"comparison,{data}")


def main(args: Sequence[str] | None = None) -> None:
    parser = ToolArguments(
        prog="evaluate.py sweep",
        usage="evaluate.py sweep --vary OPTION=VALUE,VALUE [--vary ...] [--output DIR] [--dry_run] [options of evaluate.py]",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--vary", action="append", required=True, help="An option of evaluate.py and its values.")
    parser.add_argument("--output", type=Path, default=FOLDER, help="Folder of the sweep (default: %(default)s).")
    parser.add_argument("--dry_run", action="store_true", help="Show the commands, run nothing.")
    options, shared = parser.parse_known_args(args)
    sweep([Varied.read(text) for text in options.vary], shared, options.output, options.dry_run)


if __name__ == "__main__":
    sys.exit(main_guard(main))
