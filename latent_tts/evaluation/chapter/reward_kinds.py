"""The runs of a study of reward models, each named KIND-SEED."""

from __future__ import annotations

from latent_tts.evaluation.chapter.kept import KeptRun, KeptStudy
from latent_tts.evaluation.results import Cell, results

GAINS = {"best-of-N": "best_of_n", "weighted voting": "weighted_voting"}
"""What is chosen by scores -> its aggregation, of which a run may have several reductions."""


def runs_of_kinds(study: KeptStudy) -> dict[str, dict[str, KeptRun]]:
    """Kind -> seed -> run, in the order of the study."""
    found: dict[str, dict[str, KeptRun]] = {}
    for run in study.runs:
        kind, _, seed = run.name.rpartition("-")
        found.setdefault(kind, {})[seed] = run
    return found


def gain(run: KeptRun, name: str) -> Cell | None:
    """The paired difference of one of `GAINS` to voting, over all rollouts; None where the run has it not."""
    rows = (row for row in results(run.metrics) if row.strategy.method.startswith(GAINS[name]))
    return next((row.difference for row in rows), None)
