"""The figures of a run, one a file: each is a function of the metrics, and of the records where it needs them.

To add one, write a function `(metrics, records) -> Figure | None` in a file of its own and name it in `FIGURES`: files, the
report and TensorBoard find it from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from latent_tts.evaluation.records import Record
from latent_tts.evaluation.report.figures.accuracy import accuracy_figure
from latent_tts.evaluation.report.figures.compute import compute_figure
from latent_tts.evaluation.report.figures.diversity import diversity_figure
from latent_tts.evaluation.results import Metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES: dict[str, Callable[[Metrics, Iterable[Record] | None], Figure | None]] = {
    "accuracy": accuracy_figure,
    "compute": compute_figure,
    "diversity": diversity_figure,
}
"""Name -> what draws it from the content of metrics.json and the records, None where it has nothing to show."""

CAPTIONS: dict[str, str] = {
    "accuracy": "Coverage, and the accuracy of every aggregation, against the number of rollouts k.",
    "compute": "Accuracy against the positions that went through the backbone and the reward model per problem.",
    "diversity": "Mean pairwise cosine distance between the rollouts of a problem at each latent step.",
}
"""Name -> what it shows, in a sentence."""


def figures(metrics: Metrics, records: Iterable[Record] | None = None) -> dict[str, Figure]:
    """All figures that have something to show, by name.

    Args:
        metrics: The content of metrics.json.
        records: The records it was made from, which can be gone through more than once; None leaves out the figures of them.
    """
    drawn = {name: draw(metrics, records) for name, draw in FIGURES.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}
