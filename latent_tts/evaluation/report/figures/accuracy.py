"""Coverage and every aggregation against the number of rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from latent_tts.evaluation.record_table import RecordTable
from latent_tts.evaluation.report.figures.style import (
    INTERVALS,
    SMALL,
    Curve,
    Look,
    draw_bar,
    draw_curve,
    grey,
    legend_beside,
    look,
    new_axes,
    percent_limits,
    title_of,
    wrapped,
)
from latent_tts.evaluation.results import Cell, Metrics, answers, cell, curves, results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CLOSE = 1.3  # neighbouring k of a smaller ratio have no room for two labels


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
    _bars_at_the_end(axes, [int(k) for k in metrics["coverage"]], ends)
    percent_limits(axes, [c for line in lines for c in line.cells] + [shown for shown, _ in ends])
    legend_beside(axes, INTERVALS)
    return figure


def _bars_at_the_end(axes: Axes, ks: list[int], ends: Sequence[tuple[Cell, Look]]) -> None:
    """The k as ticks of a logarithmic axis, and one bar after the other beyond the last of them."""
    octaves = len(bin(ks[-1])) - 2
    step = octaves * 0.3 / max(8, len(ends))
    for i, (shown, how) in enumerate(ends, start=1):
        draw_bar(axes, ks[-1] * 2 ** (step * (i + 0.5)), shown, how)
    axes.axvspan(ks[-1] * 2 ** (step * 0.75), ks[-1] * 2 ** (step * (len(ends) + 1.25)), color="#000000", alpha=0.04)
    axes.set_xscale("log", base=2)
    labels = [
        str(k) if later is None or later / k >= _CLOSE else "" for k, later in zip(ks, [*ks[1:], None], strict=True)
    ]
    axes.set_xticks(ks, labels)
    axes.set_xlim(ks[0] * 2 ** (-step), ks[-1] * 2 ** (step * (len(ends) + 1.25)))


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
