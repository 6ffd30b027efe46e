"""Runs the evaluations of a study one after the other, and keeps the metrics of each.

    python -m commands.study --study configs/study/controls-tiny-codi.yaml

A file of `configs/study/` names a base configuration, options that all runs share, and the runs by name with the options in which
they differ. Each run is an ordinary `evaluate.py` in a folder of its own, so a study that was killed goes on by the same command;
its metrics.json is copied to docs/runs/STUDY/RUN.json, where the figures of a text can be traced to.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from commands.evaluations import as_typed, run_evaluation
from commands.tools import run_tool
from latent_tts.errors import UserError

RESULTS, KEPT = Path("results/study"), Path("docs/runs")
_KEYS = {"config", "options", "runs"}


@dataclass(frozen=True)
class Run:
    """One evaluation of a study: its name, its folder, and the arguments of `evaluate.py`."""

    name: str
    output: Path
    arguments: list[str]


def read_study(path: Path, results: Path = RESULTS) -> list[Run]:
    """The runs of a file, in its order.

    Raises:
        UserError: The file is not there, is no YAML, or does not say what is to be run.
    """
    try:
        study = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is no study that can be read ({type(error).__name__}).") from error
    if not isinstance(study, dict) or set(study) != _KEYS or not isinstance(study["runs"], dict) or not study["runs"]:
        raise UserError(f"{path} is no study: it has to hold {', '.join(sorted(_KEYS))}, and at least one run.")
    runs = []
    for name, differing in study["runs"].items():
        output = results / path.stem / str(name)
        options = {**(study["options"] or {}), **(differing or {})}
        given = [f"--{key}={_written(value)}" for key, value in options.items()]
        runs.append(Run(str(name), output, [f"--config={study['config']}", *given, f"--output={output}"]))
    return runs


def main(
    study: Path, only: list[str] | None = None, results: Path = RESULTS, kept: Path = KEPT, dry_run: bool = False
) -> None:
    """Run the evaluations of a study one after the other, and keep the metrics of each.

    Args:
        study: The file.
        only: Names of the runs to do; all of them where it is left out.
        results: Folder in which every run has its own.
        kept: Folder that the metrics of the runs are copied to.
        dry_run: Whether the commands are shown and nothing is run.

    Raises:
        UserError: The file cannot be read, there is no such run, or a run ended with an error.
    """
    runs = read_study(study, results)
    if unknown := set(only or ()) - {run.name for run in runs}:
        raise UserError(f"{study} has no run {sorted(unknown)[0]!r}; there are: {', '.join(run.name for run in runs)}.")
    runs = [run for run in runs if only is None or run.name in only]
    for number, run in enumerate(runs, 1):
        print(f"[{number}/{len(runs)}] {as_typed(run.arguments)}", flush=True)
        if not dry_run:
            _evaluate(run, kept / study.stem)
    if len(runs) > 1:
        print("All runs side by side: " + as_typed(["report", *(str(run.output) for run in runs)]))


def _evaluate(run: Run, kept: Path) -> None:
    run_evaluation(run.name, run.arguments)
    kept.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run.output / "metrics.json", kept / f"{run.name}.json")


def _written(value: Any) -> str:
    """A value as a command line has it."""
    return value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    sys.exit(run_tool(main))
