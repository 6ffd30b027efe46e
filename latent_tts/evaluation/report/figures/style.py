"""What the figures of a run share: colours, markers, axes, lines with bands and points with bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from latent_tts.evaluation.results import Cell
from latent_tts.evaluation.strategies import Strategy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito: told apart by all eyes
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X"


def new_axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """A figure with one pair of axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2))
    figure.subplots_adjust(left=0.1, right=0.98, bottom=0.12, top=0.97)
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25)
    return figure, axes


def cycle() -> list[str]:
    """Colours for many curves."""
    return list(COLOURS) * 4


def draw_line(axes: Axes, x: Sequence[float], cells: Sequence[Cell], one: Strategy, colour: str) -> None:
    """A curve in percent with its interval as a band; coverage is dashed."""
    style = "--" if one.kind == "coverage" else "-"
    axes.plot(x, [100 * c.value for c in cells], marker="o", color=colour, linestyle=style, label=one.label())
    low, high = ([100 * bound for bound in bounds] for bounds in zip(*(c.bounds for c in cells), strict=True))
    axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)


def draw_point(axes: Axes, x: float, shown: Cell, label: str, marker: str) -> None:
    """A point in percent with its interval as a bar."""
    low, high = shown.bounds
    reach = [[100 * (shown.value - low)], [100 * (high - shown.value)]]
    axes.errorbar([x], [100 * shown.value], yerr=reach, fmt=marker, color="dimgrey", label=label)
