"""The figures of a run, one a file: each is a function of the metrics, and of the records where it needs them.

To add one, write a function `(metrics, table) -> Figure | None` in a file of its own and name it in `FIGURES` and `CAPTIONS`:
files, the report and TensorBoard find it from there. The table holds what is needed of the records, read once for all figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from latent_tts.evaluation.record_table import RecordTable, table_of
from latent_tts.evaluation.records import Record
from latent_tts.evaluation.report.figures.accuracy import accuracy_figure
from latent_tts.evaluation.report.figures.agreement import agreement_figure
from latent_tts.evaluation.report.figures.comparison import COMPARISON_CAPTIONS, comparison_figures
from latent_tts.evaluation.report.figures.compute import compute_figure
from latent_tts.evaluation.report.figures.diversity import diversity_figure
from latent_tts.evaluation.report.figures.invalid import invalid_figure
from latent_tts.evaluation.report.figures.reliability import reliability_figure
from latent_tts.evaluation.report.figures.success import success_figure
from latent_tts.evaluation.results import Metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CAPTIONS", "COMPARISON_CAPTIONS", "FIGURES", "comparison_figures", "figures"]

FIGURES: dict[str, Callable[[Metrics, RecordTable | None], Figure | None]] = {
    "accuracy": accuracy_figure,
    "compute": compute_figure,
    "diversity": diversity_figure,
    "success": success_figure,
    "reliability": reliability_figure,
    "agreement": agreement_figure,
    "invalid": invalid_figure,
}
"""Name -> what draws it from the content of metrics.json and the table of the records, None where it has nothing to show."""

CAPTIONS: dict[str, str] = {
    "accuracy": "Coverage, and the accuracy of every aggregation, against the number of rollouts k.",
    "compute": "Accuracy against the positions that went through the backbone and the reward model per problem.",
    "diversity": "Mean pairwise cosine distance between the rollouts of a problem at each latent step.",
    "success": "How often problems are solved against the diversity of their rollouts; each bar is of as many problems.",
    "reliability": "The share of right rollouts against their score, and how often a right one scores above a wrong one.",
    "agreement": "How often answers are wrong when those with the least agreement are withheld: the lower, the better.",
    "invalid": "In how many problems which share of the rollouts has no answer: few problems, or all of them.",
}
"""Name -> what it shows, in a sentence."""


def figures(metrics: Metrics, records: Iterable[Record] | RecordTable | None = None) -> dict[str, Figure]:
    """All figures that have something to show, by name.

    Args:
        metrics: The content of metrics.json.
        records: The records it was made from, or their table; None leaves out the figures of them. They are gone through once.
    """
    table = None if records is None else table_of(records)
    drawn = {name: draw(metrics, table) for name, draw in FIGURES.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}
