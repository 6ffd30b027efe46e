"""Accuracy against compute."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latent_tts.evaluation.record_table import RecordTable
from latent_tts.evaluation.report.figures.style import (
    INTERVALS,
    Curve,
    draw_bar,
    draw_curve,
    grey,
    legend_beside,
    look,
    new_axes,
    percent_limits,
    step_ticks,
    title_of,
)
from latent_tts.evaluation.results import Metrics, answers, cell, curves, searches, token_steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def compute_figure(metrics: Metrics, table: RecordTable | None = None) -> Figure:
    """Accuracy of every strategy against the token steps it takes per problem; what has one budget only is a point."""
    lines = [
        Curve(one.label(), [token_steps(metrics, one.at(k)) for k in cells], list(cells.values()), look(i))
        for i, (one, cells) in enumerate(curves(metrics).items())
    ]
    points = [*answers(metrics), *searches(metrics)]
    title = title_of(metrics, "Accuracy against compute")
    figure, axes = new_axes(title, "token steps per problem", "accuracy in %", len(lines) + len(points))
    for line in lines:
        draw_curve(axes, line, band=False)
        draw_bar(axes, line.x[-1], line.cells[-1], line.look)
    for i, one in enumerate(points):
        draw_bar(axes, token_steps(metrics, one), cell(metrics, one), grey(i), one.label())
    step_ticks(axes, [x for line in lines for x in line.x] + [token_steps(metrics, one) for one in points])
    percent_limits(axes, [c for line in lines for c in line.cells] + [cell(metrics, one) for one in points])
    legend_beside(axes, INTERVALS)
    return figure
