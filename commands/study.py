"""Runs the steps of a study one after the other, and keeps what they measured.

    python -m commands.study --study configs/study/controls-tiny-codi.yaml

A file of `configs/study/` names a base configuration, options that all runs share, and the runs by name with the options in which
they differ. Each run is an ordinary `evaluate.py` in a folder of its own, so a study that was killed goes on by the same command.
The figures of a text can be traced to docs/runs/STUDY/: RUN.json is the metrics.json of a run, comparison.json how runs differ
problem by problem. A study that has to make models first holds several such parts, done in the order of `PARTS`: `{folder}` in an
option stands for the study's own folder, in which every step has one of its name. A run may name a `config` of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from commands.evaluations import python_as_typed, run_python
from commands.tools import run_tool
from latent_tts.errors import UserError
from latent_tts.evaluation.run_folder import require_writable

RESULTS, KEPT = Path("results/study"), Path("docs/runs")
COMPARISON = "comparison"
_KEYS = {"config", "options", "runs"}


@dataclass(frozen=True)
class Step:
    """One command of a study: its name, its folder, the words after `python`, and what is kept of it."""

    name: str
    output: Path
    words: list[str]
    keep: Callable[[Path], str] | None

    @property
    def is_evaluation(self) -> bool:
        """Whether it measures rollouts."""
        return self.keep is _metrics


def _metrics(output: Path) -> str:
    return (output / "metrics.json").read_text(encoding="utf-8")


def _training(output: Path) -> str:
    """How a training went, without what depends on the machine it ran on but its time."""
    described = json.loads((output / "run.json").read_text(encoding="utf-8"))
    kept = ("state", "epochs", "steps", "seconds", "best", "settings")
    return json.dumps({key: described[key] for key in kept if key in described}, indent=2) + "\n"


@dataclass(frozen=True)
class Part:
    """A kind of steps: the command, its option for the folder, and what is kept."""

    command: tuple[str, ...]
    output: str = "--output"
    keep: Callable[[Path], str] | None = None


PARTS = {
    "models": Part(("-m", "commands.fresh_model"), "--out"),
    "writers": Part(("-m", "commands.writer"), "--out"),
    "annotations": Part(("evaluate.py", "annotate")),
    "trainings": Part(("train.py", "fit"), keep=_training),
    "evaluations": Part(("evaluate.py",), keep=_metrics),
}
"""In the order in which they are done: each may use what those before it made."""


def read_study(path: Path, results: Path = RESULTS) -> list[Step]:
    """The steps of a file, in their order.

    Raises:
        UserError: The file is not there, is no YAML, or does not say what is to be run.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is no study that can be read ({type(error).__name__}).") from error
    parts = _parts(path, content)
    folder = results / path.stem
    steps = [step for name, part in PARTS.items() if name in parts for step in _steps(part, parts[name], folder)]
    names = [step.name for step in steps]
    if twice := next((name for name in names if names.count(name) > 1 or name == COMPARISON), None):
        raise UserError(f"{path} has two steps of the name {twice!r}, or one that its comparison takes: rename one.")
    return steps


def _parts(path: Path, content: Any) -> Mapping[str, Any]:
    """The parts by name; a file that is one part itself holds evaluations.

    Raises:
        UserError: It does not say what is to be run.
    """
    parts = {"evaluations": content} if isinstance(content, dict) and "runs" in content else content
    whole = isinstance(parts, dict) and bool(parts) and set(parts) <= set(PARTS)
    if not whole or not all(_is_part(part) for part in parts.values()):
        raise UserError(
            f"{path} is no study: it has to hold {', '.join(sorted(_KEYS))}, and at least one run; or several such parts, "
            f"named {', '.join(PARTS)}."
        )
    found: Mapping[str, Any] = parts
    return found


def _is_part(part: Any) -> bool:
    return isinstance(part, dict) and set(part) == _KEYS and isinstance(part["runs"], dict) and bool(part["runs"])


def _steps(part: Part, content: Mapping[str, Any], folder: Path) -> Iterator[Step]:
    for name, differing in content["runs"].items():
        output = folder / str(name)
        options = {"config": content["config"], **(content["options"] or {}), **(differing or {})}
        config = options.pop("config")
        configs = config if isinstance(config, list) else [config]
        given = [f"--{key}={_written(value)}".replace("{folder}", str(folder)) for key, value in options.items()]
        words = [*part.command, *(f"--config={one}" for one in configs), *given, f"{part.output}={output}"]
        yield Step(str(name), output, words, part.keep)


def main(
    study: Path,
    only: list[str] | None = None,
    results: Path = RESULTS,
    kept: Path = KEPT,
    dry_run: bool = False,
    keep_only: bool = False,
) -> None:
    """Run the steps of a study one after the other, and keep what they measured.

    Args:
        study: The file.
        only: Names of the steps to do; all of them where it is left out.
        results: Folder in which every step has its own.
        kept: Folder that the metrics of the runs are copied to.
        dry_run: Whether the commands are shown and nothing is run.
        keep_only: Whether nothing is run, and what finished steps measured is kept anew.

    Raises:
        UserError: The file cannot be read, there is no such step, a folder cannot be written to, or a step ended with an error.
    """
    steps = read_study(study, results)
    if unknown := set(only or ()) - {step.name for step in steps}:
        raise UserError(
            f"{study} has no run {sorted(unknown)[0]!r}; there are: {', '.join(one.name for one in steps)}."
        )
    if not dry_run:
        require_writable(results, "--results")
        require_writable(kept, "--kept")
    chosen = [step for step in steps if only is None or step.name in only]
    for number, step in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {python_as_typed(step.words)}", flush=True)
        if not dry_run:
            _do(step, kept / study.stem, run=not keep_only)
    if not dry_run:
        _keep_comparison([step.output for step in steps if step.is_evaluation], kept / study.stem)


def _do(step: Step, kept: Path, run: bool) -> None:
    if run:
        run_python(step.name, step.words)
    if step.keep is not None and (run or step.output.exists()):
        kept.mkdir(parents=True, exist_ok=True)
        (kept / f"{step.name}.json").write_text(step.keep(step.output), encoding="utf-8")


def _keep_comparison(outputs: Sequence[Path], kept: Path) -> None:
    """What evaluations show problem by problem and how they differ, once all are there; metrics have files of their own."""
    if not outputs or not all((output / "metrics.json").exists() for output in outputs):
        return
    from latent_tts.evaluation.comparison import compare

    content = compare(outputs).to_json()
    for run in content["runs"]:
        del run["metrics"], run["path"]
    (kept / f"{COMPARISON}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if len(outputs) > 1:
        print("All runs side by side: " + python_as_typed(["evaluate.py", "report", *map(str, outputs)]))


def _written(value: Any) -> str:
    """A value as a command line has it."""
    return value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    sys.exit(run_tool(main))
