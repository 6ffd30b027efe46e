"""Coverage and every aggregation against the number of rollouts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latent_tts.evaluation.record_table import RecordTable
from latent_tts.evaluation.report.figures.style import (
    INTERVALS,
    SMALL,
    Curve,
    bars_at_the_end,
    draw_bar,
    draw_curve,
    grey,
    k_ticks,
    legend_beside,
    look,
    new_axes,
    percent_limits,
    title_of,
    wrapped,
)
from latent_tts.evaluation.results import Metrics, answers, cell, curves, results

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def accuracy_figure(metrics: Metrics, table: RecordTable | None = None) -> Figure:
    """Coverage and every aggregation against k, the greedy answer as a level; for a single rollout a point for each."""
    return _over_k(metrics) if metrics["num_rollouts"] > 1 else _points(metrics)


def _over_k(metrics: Metrics) -> Figure:
    """Coverage and the first aggregation with bands; where each curve ends, its interval as a bar, side by side."""
    lines = [
        Curve(one.label(), list(cells), list(cells.values()), look(i))
        for i, (one, cells) in enumerate(curves(metrics).items())
    ]
    levels = answers(metrics)
    names = len(lines) + len(levels)
    figure, axes = new_axes(title_of(metrics, "Accuracy against rollouts"), "rollouts k", "accuracy in %", names)
    ends = [(line.cells[-1], line.look) for line in lines]
    for i, line in enumerate(lines):
        draw_curve(axes, line, band=i < 2)
    for i, one in enumerate(levels):
        value = 100 * cell(metrics, one).value
        axes.axhline(value, color="#555555", linestyle=(":", "-.")[i % 2], label=wrapped(one.label()), linewidth=1.2)
        ends.append((cell(metrics, one), grey(i)))
    ks = [int(k) for k in metrics["coverage"]]
    bars_at_the_end(axes, ks[-1], ends)
    k_ticks(axes, ks)
    percent_limits(axes, [c for line in lines for c in line.cells] + [shown for shown, _ in ends])
    legend_beside(axes, INTERVALS)
    return figure


def _points(metrics: Metrics) -> Figure:
    """Every strategy as a point with a bar, named at the left: with one rollout there is no curve."""
    rows = results(metrics)[::-1]
    figure, axes = new_axes(title_of(metrics, "Accuracy"), "accuracy in %", "", len(rows))
    for y, row in enumerate(rows):
        draw_bar(axes, y, row.accuracy, look(0), horizontal=True)
    axes.set_yticks(range(len(rows)), [wrapped(row.strategy.label(), 40) for row in rows], fontsize=SMALL)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    percent_limits(axes, [row.accuracy for row in rows], "x")
    return figure
