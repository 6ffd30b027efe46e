"""Accuracy against compute."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from latent_tts.evaluation.records import Record
from latent_tts.evaluation.report.figures.style import MARKERS, cycle, draw_line, draw_point, new_axes
from latent_tts.evaluation.results import Metrics, answers, cell, curves, results, searches, token_steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def compute_figure(metrics: Metrics, records: Iterable[Record] | None = None) -> Figure:
    """Accuracy of every strategy against the token steps it takes per problem."""
    figure, axes = new_axes("token steps per problem", "accuracy in %")
    for colour, (one, cells) in zip(cycle(), curves(metrics).items(), strict=False):
        draw_line(axes, [token_steps(metrics, one.at(k)) for k in cells], list(cells.values()), one, colour)
    for marker, one in zip(MARKERS * 4, [*answers(metrics), *searches(metrics)], strict=False):
        draw_point(axes, token_steps(metrics, one), cell(metrics, one), one.label(), marker)
    axes.set_xscale("log")
    ticks = [*metrics["token_steps"]["rollouts"].values(), max(row.token_steps for row in results(metrics))]
    axes.set_xticks(ticks, [f"{steps:,.0f}" for steps in ticks])
    axes.minorticks_off()
    axes.legend(fontsize="small")
    return figure
