"""Reliability of the reward model: how scores go with the share of right rollouts, and how they rank rollouts of a problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from latent_tts.evaluation.record_table import RecordTable, ranking
from latent_tts.evaluation.report.figures.style import (
    SMALL,
    draw_bar,
    legend_below,
    look,
    new_figure,
    title_of,
)
from latent_tts.evaluation.results import DASH, Cell, Metrics
from latent_tts.metrics.intervals import Interval
from latent_tts.metrics.ratios import ratio_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUM_BINS = 10


@dataclass(frozen=True)
class ScoreBin:
    """Rollouts of like scores."""

    score: float
    """Their mean score."""
    probability: float
    """Their mean sigmoid(score)."""
    right: Interval
    """The share of right ones; the interval knows which are of one problem."""
    count: int


def score_bins(table: RecordTable, num_bins: int = NUM_BINS) -> list[ScoreBin]:
    """Rollouts in order of score, cut in bins of equal numbers (to one)."""
    order = np.argsort(table.score, kind="stable")
    parts = np.array_split(order, max(1, min(num_bins, len(order))))
    return [_score_bin(table, part) for part in parts]


def _score_bin(table: RecordTable, part: Any) -> ScoreBin:
    scores = table.score[part].astype(np.float64)
    size = table.num_problems
    right = np.bincount(table.problem[part], weights=table.correct[part], minlength=size)
    interval = ratio_interval(right, np.bincount(table.problem[part], minlength=size))
    return ScoreBin(float(scores.mean()), float((1 / (1 + np.exp(-scores))).mean()), interval, len(part))


def calibration_error(bins: list[ScoreBin]) -> float:
    """Mean over rollouts of |mean sigmoid(score) - share right| of their bin (Guo et al. 2017, arXiv 1706.04599)."""
    total = sum(one.count for one in bins)
    return sum(one.count * abs(one.probability - one.right.mean) for one in bins) / total


def reliability_figure(metrics: Metrics, table: RecordTable | None = None) -> Figure | None:
    """Share right against score at the left, pairs ranked right at each step at the right; None without scores."""
    if table is None or not table.scored:
        return None
    has_pairs = bool(table.pairs.sum())
    figure = new_figure(title_of(metrics, "Reliability of the reward model"), 4.6, 8.0 if has_pairs else 5.6)
    panels = figure.subplots(1, 1 + has_pairs, squeeze=False)[0]
    _draw_calibration(panels[0], score_bins(table))
    if has_pairs:
        _draw_ranking(panels[1], table)
    return figure


def _draw_calibration(axes: Axes, bins: list[ScoreBin]) -> None:
    axes.set_title(f"calibration error {calibration_error(bins):.3f}", fontsize=SMALL + 1)
    xs = [one.score for one in bins]
    for one in bins:
        draw_bar(axes, one.score, Cell(*one.right), look(0))
    axes.plot(xs, [100 * one.right.mean for one in bins], label="tenths of the rollouts", **look(0).options())
    room = max(0.5, 0.05 * (xs[-1] - xs[0]))
    line = np.linspace(xs[0] - room / 2, xs[-1] + room / 2, 100)
    axes.plot(line, 100 / (1 + np.exp(-line)), color="#555555", linestyle=":", label="calibrated: sigmoid(score)")
    axes.set(
        xlabel="score of the last latent thought",
        ylabel="right in %",
        ylim=(-3, 103),
        xlim=(xs[0] - room, xs[-1] + room),
    )
    axes.grid(alpha=0.25)
    legend_below(axes)


def _draw_ranking(axes: Axes, table: RecordTable) -> None:
    from matplotlib.ticker import MaxNLocator

    over_all = ranking(table)
    reach = f"{100 * over_all.low:.1f}{DASH}{100 * over_all.high:.1f}"
    axes.set_title(f"over all steps {100 * over_all.mean:.1f} % ({reach})", fontsize=SMALL + 1)
    found = {t + 1: ranking(table, t) for t in range(table.pairs.shape[1]) if table.pairs[:, t].any()}
    for step, interval in found.items():
        draw_bar(axes, step, Cell(*interval), look(1))
    label = "right scored above wrong, same problem"
    axes.plot(list(found), [100 * one.mean for one in found.values()], label=label, **look(1).options())
    axes.axhline(50, color="#555555", linestyle=":", label="chance")
    axes.set(xlabel="latent step", ylabel="pairs in %", ylim=(-3, 103), xlim=(min(found) - 0.5, max(found) + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    axes.grid(alpha=0.25)
    legend_below(axes)
