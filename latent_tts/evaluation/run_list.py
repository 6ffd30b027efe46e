"""The runs of a folder as rows: what each was, and its main figures, read from run.json and metrics.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from latent_tts.errors import UserError
from latent_tts.evaluation.prediction_files import prediction_files
from latent_tts.evaluation.results import Cell, results
from latent_tts.evaluation.run_folder import METRICS_FILE, RUN_FILE, read_run
from latent_tts.evaluation.strategies import COVERAGE, GREEDY, of_aggregation
from latent_tts.evaluation.summary import BASELINE


@dataclass(frozen=True)
class ListedRun:
    """One run; what does not apply or is not known is None."""

    name: str
    kind: str
    """`evaluation`, `training`, `annotation`, or `unknown`."""
    date: str | None
    finished: bool
    backbone: str | None = None
    sampler: str | None = None
    """With its strength: `AdditiveGaussianNoise(sigma=0.5)`."""
    num_rollouts: int | None = None
    data: str | None = None
    num_problems: int | None = None
    greedy: Cell | None = None
    voting: Cell | None = None
    best: Cell | None = None
    """Of the strategy that is right most often at its full budget."""
    best_strategy: str | None = None
    coverage: Cell | None = None
    module: str | None = None
    steps: int | None = None
    monitored: str | None = None
    """`val/accuracy 0.412`."""

    def to_json(self) -> dict[str, Any]:
        """Every field; accuracies with their bounds."""
        return asdict(self)


@dataclass(frozen=True)
class Listing:
    """What a folder holds."""

    runs: tuple[ListedRun, ...]
    strange: tuple[str, ...]
    """A sentence for each folder that is broken, or no run."""


def list_runs(folders: Sequence[Path]) -> Listing:
    """The runs in folders, at any depth; a folder that is a run itself is listed too.

    Raises:
        UserError: A folder is not there.
    """
    runs: list[ListedRun] = []
    strange: list[str] = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}: name one that holds runs.")
        for found in _walk(folder):
            try:
                runs.append(_listed(found, folder)) if (found / RUN_FILE).exists() else strange.append(
                    f"{found}: no run"
                )
            except (UserError, ValueError, KeyError, TypeError, OSError) as error:
                strange.append(f"{found}: broken ({_why(error)})")
    return Listing(tuple(runs), tuple(strange))


def _why(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error).rstrip(".")
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _walk(folder: Path) -> Iterator[Path]:
    """Runs, and folders that hold none; what lies in a run is not gone through."""
    if (folder / RUN_FILE).exists():
        yield folder
        return
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    holding = [path for path in inside if any(path.rglob(RUN_FILE))]
    for path in inside:
        if path in holding:
            yield from _walk(path)
        elif not (folder / "comparison.json").exists():  # the figures of a comparison are no broken run
            yield path


def _listed(path: Path, root: Path) -> ListedRun:
    run = read_run(path)
    assert run is not None
    name = path.relative_to(root).as_posix() if path != root else path.name
    if "evaluated" in run:
        return _evaluation(name, path, run)
    if "num_continuations" in run["settings"]:
        return _annotation(name, run)
    known = "state" in run
    module = str(run["settings"].get("model.class_path", "")).rpartition(".")[2] or None
    best = run.get("best")
    return ListedRun(
        name,
        "training" if known else "unknown",
        run.get("ended") or run.get("started"),
        run.get("state") == "finished",
        backbone=_model_name(run["settings"].get("model.init_args.backbone")),
        module=module,
        steps=run.get("steps"),
        monitored=f"{best['metric']} {best['value']:.4g}" if best else None,
    )


def _annotation(name: str, run: dict[str, Any]) -> ListedRun:
    settings = run["settings"]
    return ListedRun(
        name,
        "annotation",
        run.get("finished") or run.get("started"),
        run.get("finished") is not None,
        backbone=settings["backbone_kind"],
        sampler=_sampler(settings["sampler"]),
        num_rollouts=settings["num_rollouts"],
        data=_model_name(json.loads(settings["data"]).get("source")),
        num_problems=run.get("num_problems"),
    )


def _sampler(settings: dict[str, Any]) -> str:
    """With its strength: `AdditiveGaussianNoise(sigma=0.5)`."""
    options = ", ".join(f"{key}={value}" for key, value in settings.items() if key != "name")
    return f"{settings['name']}({options})"


def _evaluation(name: str, path: Path, run: dict[str, Any]) -> ListedRun:
    evaluated, settings = run["evaluated"], run["settings"]
    common: dict[str, Any] = {
        "name": name,
        "kind": "evaluation",
        "date": run.get("finished") or run.get("started"),
        "finished": run.get("finished") is not None,
        "backbone": _model_name(evaluated["backbone"]["name"]),
        "sampler": _sampler(evaluated["sampler"]),
        "num_rollouts": settings["model.num_rollouts"],
        "data": _model_name(settings.get("data.source")),
    }
    if not (path / METRICS_FILE).exists():
        return ListedRun(**common, num_problems=sum(_num_lines(file) for file in prediction_files(path)))
    return ListedRun(**common, **_figures(json.loads((path / METRICS_FILE).read_text(encoding="utf-8"))))


def _figures(metrics: dict[str, Any]) -> dict[str, Any]:
    """The main figures as metrics.json has them."""
    found = {result.strategy: result for result in results(metrics)}
    voting = found.get(of_aggregation(BASELINE, metrics["num_rollouts"]))
    ways = [result for one, result in found.items() if one.kind != "coverage"]
    best = max(ways, key=lambda result: result.accuracy.value)
    return {
        "num_problems": metrics["num_problems"],
        "greedy": found[GREEDY].accuracy,
        "voting": None if voting is None else voting.accuracy,
        "best": best.accuracy,
        "best_strategy": best.strategy.label(),
        "coverage": found[COVERAGE.at(metrics["num_rollouts"])].accuracy,
    }


def _model_name(name: Any) -> str | None:
    return Path(name).name if isinstance(name, str) else None


def _num_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)
