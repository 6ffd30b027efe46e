"""Rollouts without an answer: whether they are of a few problems or of all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from latent_tts.evaluation.record_table import RecordTable
from latent_tts.evaluation.report.figures.style import WRONG, new_axes, title_of
from latent_tts.evaluation.results import Metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_BARS = 16


def invalid_figure(metrics: Metrics, table: RecordTable | None = None) -> Figure | None:
    """In how many problems which share of the rollouts has no answer; None where all have one."""
    if table is None or not table.num_invalid.any():
        return None
    from matplotlib.ticker import MaxNLocator

    bars = min(metrics["num_rollouts"], _MOST_BARS)
    shares = 100 * table.num_invalid / table.num_rollouts
    # A bar is around its share: the first is of problems whose rollouts all, or nearly all, have an answer.
    edges = (np.arange(bars + 2) - 0.5) * 100 / bars
    figure, axes = new_axes(
        title_of(metrics, "Rollouts without an answer"), "rollouts without an answer in %", "problems"
    )
    axes.hist(shares, edges, color=WRONG, edgecolor="white", linewidth=0.6)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(edges[0], edges[-1])
    return figure
