"""Coverage and every aggregation against the number of rollouts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from latent_tts.evaluation.records import Record
from latent_tts.evaluation.report.figures.style import cycle, draw_line, new_axes
from latent_tts.evaluation.results import Metrics, answers, cell, curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def accuracy_figure(metrics: Metrics, records: Iterable[Record] | None = None) -> Figure:
    """Coverage and every aggregation against k, with interval bands, and the greedy answer as a line."""
    figure, axes = new_axes("rollouts k", "accuracy in %")
    for colour, (one, cells) in zip(cycle(), curves(metrics).items(), strict=False):
        draw_line(axes, list(cells), list(cells.values()), one, colour)
    for style, one in zip((":", "-."), answers(metrics), strict=False):
        axes.axhline(100 * cell(metrics, one).value, color="grey", linestyle=style, label=one.label())
    ks = [int(k) for k in metrics["coverage"]]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.legend(fontsize="small")
    return figure
