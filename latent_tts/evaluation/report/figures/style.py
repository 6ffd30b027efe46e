"""What the figures of a run share: sizes, titles, colours and markers, curves with their intervals, and legends outside the axes.

Matplotlib's constrained layout makes room for every text. Colours, markers and line styles all differ, so that curves can be told
apart in grey too; a band is drawn where there are few curves, else each has one bar at its end.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from latent_tts.evaluation.results import Cell, Metrics, description

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito: told apart by all eyes
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "os^DvP*X"
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))

RIGHT, WRONG = COLOURS[0], COLOURS[1]
WIDTH, HEIGHT = 8.0, 4.4
"""Inches of a figure with one pair of axes and a legend beside it."""
SMALL = 8
"""Points of legends and notes."""
INTERVALS = "bars and bands: 95 % intervals"

_CLOSE = 1.3  # neighbouring k of a smaller ratio have no room for two labels
_LINE, _GAP = 0.14, 0.06  # inches of a line of a legend, and between two names
_NAME_WIDTH, _TITLE_WIDTH = 27, 84  # characters


@dataclass(frozen=True)
class Look:
    """How one curve is told from the others."""

    color: str
    marker: str
    linestyle: Any

    def options(self) -> dict[str, Any]:
        """For `axes.plot`."""
        return vars(self) | {"markersize": 4.5, "linewidth": 1.4}


def look(number: int) -> Look:
    """Of curve 0, 1, ...: colours repeat after 7, markers after 8, so that 56 curves differ."""
    return Look(
        COLOURS[number % len(COLOURS)],
        MARKERS[number % len(MARKERS)],
        LINES[number // len(COLOURS) % len(LINES)],
    )


@dataclass(frozen=True)
class Curve:
    """One strategy over x, in shares of 1."""

    label: str
    x: Sequence[float]
    cells: Sequence[Cell]
    look: Look

    @property
    def last(self) -> float:
        return self.cells[-1].value


def new_figure(title: str, height: float = HEIGHT, width: float = WIDTH) -> Figure:
    """An empty figure with its title at the top left."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    lines = [line for part in title.split("\n") for line in textwrap.wrap(part, int(_TITLE_WIDTH * width / WIDTH))]
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=SMALL + 1)
    return figure


def new_axes(title: str, x_label: str, y_label: str, num_names: int = 0) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, high enough for a legend of so many names."""
    figure = new_figure(title, max(HEIGHT, 1.2 + 0.27 * num_names))
    axes = figure.subplots()
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.25)
    return figure, axes


def title_of(metrics: Metrics, what: str) -> str:
    """What is shown, then model, sampler, problems, their number and N."""
    about = description(metrics)
    of = ", ".join(about[key] for key in ("backbone", "sampler") if key in about)
    asked = f"{about['data']}: " if "data" in about else ""
    count, num_rollouts = metrics["num_problems"], metrics["num_rollouts"]
    lines = [what, of, f"{asked}{count:,} {'problem' if count == 1 else 'problems'}, N = {num_rollouts:,}"]
    return "\n".join(filter(None, lines))


def wrapped(name: str, width: int = _NAME_WIDTH) -> str:
    """A name on several lines where it is long."""
    return "\n".join(textwrap.wrap(name, width, break_long_words=len(max(name.split(), key=len, default="")) > 40))


def draw_curve(axes: Axes, curve: Curve, band: bool) -> None:
    """A line in percent, over its interval as a light band where that is asked for."""
    if band:
        low, high = ([100 * bound for bound in bounds] for bounds in zip(*(c.bounds for c in curve.cells), strict=True))
        axes.fill_between(curve.x, low, high, color=curve.look.color, alpha=0.12, linewidth=0, zorder=1)
    axes.plot(
        curve.x, [100 * c.value for c in curve.cells], label=wrapped(curve.label), zorder=3, **curve.look.options()
    )


def draw_bar(axes: Axes, x: float, shown: Cell, how: Look, label: str | None = None, horizontal: bool = False) -> None:
    """A point in percent with its interval as a bar, upright or lying; one with a name is larger."""
    size = 4.5 if label is None else 6.5
    low, high = shown.bounds
    value = 100 * shown.value
    reach = [[value - 100 * low], [100 * high - value]]
    where: dict[str, Any] = (
        {"x": [value], "y": [x], "xerr": reach} if horizontal else {"x": [x], "y": [value], "yerr": reach}
    )
    axes.errorbar(
        **where,
        fmt=how.marker,
        color=how.color,
        markersize=size,
        elinewidth=1.0,
        capsize=2.5,
        label=None if label is None else wrapped(label),
        zorder=4,
    )


def bars_at_the_end(axes: Axes, last: int, ends: Sequence[tuple[Cell, Look]]) -> None:
    """Intervals of curves over k, one bar beside the other beyond the last k, where they cover neither each other nor a curve."""
    octaves = len(bin(last)) - 2
    step = octaves * 0.3 / max(8, len(ends))
    for i, (shown, how) in enumerate(ends, start=1):
        draw_bar(axes, last * 2 ** (step * (i + 0.5)), shown, how)
    end = last * 2 ** (step * (len(ends) + 1.25))
    axes.axvspan(last * 2 ** (step * 0.75), end, color="#000000", alpha=0.04, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xlim(2 ** (-0.5 * step), end)


def k_ticks(axes: Axes, ks: Sequence[int], narrow: bool = False) -> None:
    """The k as ticks; of neighbours without room for two labels the first has none, and on narrow axes of many k every other."""
    ends = [*ks[1:], 2 * _CLOSE * ks[-1]]
    labels = [str(k) if later / k >= _CLOSE else "" for k, later in zip(ks, ends, strict=True)]
    if narrow and len(ks) > 8:
        labels = [label if (len(ks) - 1 - i) % 2 == 0 else "" for i, label in enumerate(labels)]
    axes.set_xticks(ks, labels)
    axes.minorticks_off()


def grey(number: int) -> Look:
    """Of a strategy that is a point or a level among curves."""
    return replace(look(number), color="#555555", marker=MARKERS[-1 - number % len(MARKERS)])


def percent_limits(axes: Axes, cells: Sequence[Cell], axis: str = "y") -> None:
    """Room for all intervals with their markers: nothing is cut at 0 % or 100 %, and equal values still have a scale."""
    ends = [100 * bound for cell in cells for bound in (*cell.bounds, cell.value)]
    low, high = min(ends), max(ends)
    room = max(0.05 * (high - low), 0.5)
    (axes.set_ylim if axis == "y" else axes.set_xlim)(low - room, high + room)


def step_ticks(axes: Axes, steps: Sequence[float], most: int = 8) -> None:
    """A logarithmic axis of token steps with 3 ticks to as many as are asked for, of which no two labels meet: 200, 5k, 1M."""
    from matplotlib.ticker import EngFormatter, FixedLocator, MaxNLocator, NullLocator

    low, high = min(steps), max(steps)
    decades = [10.0**power for power in range(-1, 16)]
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [digit * decade for decade in decades for digit in digits if low <= digit * decade <= high]
        if len(ticks) <= most:
            break
    if len(ticks) < 3:
        ticks = [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high] or [low]
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(low / (high / low) ** 0.04 / 1.03, high * (high / low) ** 0.04 * 1.03)


def legend_at_the_right(figure: Figure, axes: Axes, title: str) -> None:
    """One legend for several axes right of all of them, the highest curve of these first; the figure grows with it."""
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(handles)), key=lambda i: -_height(handles[i]))
    names = [labels[i] for i in order]
    legend_of_figure(figure, [handles[i] for i in order], names, title)
    needed = sum(_LINE * (name.count("\n") + 1) + _GAP for name in names) + 0.5
    figure.set_figheight(max(figure.get_figheight(), needed))


def legend_of_figure(figure: Figure, handles: Sequence[Any], names: Sequence[str], title: str) -> None:
    """A legend right of all axes, under a title."""
    figure.legend(
        handles,
        names,
        loc="outside right upper",
        fontsize=SMALL,
        title=title,
        title_fontsize=SMALL,
        alignment="left",
        frameon=False,
        handlelength=3.2,
    )


def legend_beside(axes: Axes, title: str | None = None) -> None:
    """A legend right of the axes, the highest curve first."""
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(handles)), key=lambda i: -_height(handles[i]))
    axes.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0.0,
        fontsize=SMALL,
        title=None if title is None else wrapped(title),
        title_fontsize=SMALL,
        alignment="left",
        frameon=False,
        handlelength=3.2,
    )


def legend_below(axes: Axes) -> None:
    """A legend under the axes, a curve a line, for figures of several axes."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), fontsize=SMALL, frameon=False, handlelength=3.2)


def _height(handle: Any) -> float:
    """Where a curve, or a point with its bar, ends."""
    line = handle if hasattr(handle, "get_ydata") else handle.lines[0]
    return float(line.get_ydata()[-1])
