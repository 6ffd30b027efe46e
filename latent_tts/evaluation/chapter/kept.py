"""What is kept of a study: the metrics of every run, and how its runs differ problem by problem."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from latent_tts.errors import UserError
from latent_tts.evaluation.results import Cell, Metrics, cell, curves, strategies
from latent_tts.evaluation.strategies import Strategy

COMPARISON = "comparison"


@dataclass(frozen=True)
class KeptRun:
    """One run."""

    name: str
    metrics: Metrics
    beside: dict[str, Any] | None
    """Its part of the study's comparison; None where the study has none."""

    def at(self, key: str) -> Cell | None:
        """The value of a strategy, by its key such as `coverage@16`; None where the run has it not."""
        found = self._by_key.get(key)
        return None if found is None else cell(self.metrics, found)

    @cached_property
    def _by_key(self) -> dict[str, Strategy]:
        return {one.key: one for one in strategies(self.metrics)}

    @property
    def top(self) -> int:
        """N."""
        return int(self.metrics["num_rollouts"])

    def curve(self, method: str) -> dict[int, Cell]:
        """k -> value of an aggregation or of coverage, empty where the run has it not."""
        return next((found for one, found in curves(self.metrics).items() if one.method == method), {})

    def difference(self, method: str) -> Cell | None:
        """The paired difference to the study's first run, each at its full budget."""
        return _cell(None if self.beside is None else self.beside["full_differences"].get(method))

    def difference_at(self, key: str) -> Cell | None:
        """The paired difference to the study's first run at an equal budget, by the strategy's key."""
        return _cell(None if self.beside is None else self.beside["differences"].get(key))

    def correlation(self, outcome: str, given: str) -> Cell | None:
        """Rank correlation of a problem's diversity with an outcome, see `evaluation.problem_statistics`."""
        return _cell(None if self.beside is None else self.beside["problems"]["diversity_and"][outcome].get(given))

    @property
    def different_answers(self) -> float | None:
        """Mean number of different answers of a problem's rollouts."""
        return None if self.beside is None else self.beside["problems"].get("different_answers")

    @property
    def luck(self) -> float | None:
        """Coverage by the rollouts of another problem."""
        return None if self.beside is None else self.beside["problems"].get("luck")

    @property
    def near_miss(self) -> float | None:
        """Coverage of a number beside the gold answer."""
        return None if self.beside is None else self.beside["problems"].get("near_miss")

    @property
    def risks(self) -> dict[str, Any]:
        """Rule -> area and risks, see `evaluation.problem_statistics`."""
        found: dict[str, Any] = {} if self.beside is None else self.beside["problems"]["risk"]
        return found


def _cell(found: dict[str, Any] | None) -> Cell | None:
    return None if found is None else Cell(found["mean"], *found["interval"])


@dataclass(frozen=True)
class KeptStudy:
    """All runs of a study, in the order of its file."""

    name: str
    runs: Sequence[KeptRun]
    trainings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What is kept of its trainings, by name."""

    def run(self, name: str) -> KeptRun:
        """One of them.

        Raises:
            UserError: There is none of the name.
        """
        found = next((run for run in self.runs if run.name == name), None)
        if found is None:
            raise UserError(f"{self.name} has no run {name!r} among {', '.join(run.name for run in self.runs)}.")
        return found

    @property
    def num_problems(self) -> int:
        """The same in all of them.

        Raises:
            UserError: They differ.
        """
        counts = {run.metrics["num_problems"] for run in self.runs}
        if len(counts) != 1:
            raise UserError(f"The runs of {self.name} have different numbers of problems: {sorted(counts)}.")
        return int(counts.pop())


def read_kept(folder: Path) -> KeptStudy:
    """The study whose files stand in a folder, such as docs/runs/controls-tiny-codi.

    Raises:
        UserError: There is none.
    """
    files = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    beside = {one["name"]: one for one in files.pop(COMPARISON, {"runs": []})["runs"]}
    evaluations = {name: content for name, content in files.items() if "num_rollouts" in content}
    if not evaluations:
        raise UserError(f"{folder} holds no run of a study.")
    order = [*(name for name in beside if name in evaluations), *(name for name in evaluations if name not in beside)]
    trainings = {name: content for name, content in files.items() if name not in evaluations}
    return KeptStudy(folder.name, [KeptRun(name, evaluations[name], beside.get(name)) for name in order], trainings)


CONTROLS = ("own", "shuffle", "first-4", "first-2", "first-1", "first-0", "zero")
"""From most to least of what was thought."""


def controls_in_order(study: KeptStudy) -> list[KeptRun]:
    """The runs of a study of controls."""
    return sorted(study.runs, key=lambda run: CONTROLS.index(run.name))
