"""Where the parts of a drawn figure lie, in pixels: what a reader would see cut off or covered."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import BboxBase


def faults(figure: Figure) -> list[str]:
    """Texts outside the canvas, texts over texts, legends over axes, and data outside their axes."""
    FigureCanvasAgg(figure).draw()
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
    found = [f"{name!r} lies outside" for name, box in boxes if not _within(box, figure.bbox)]
    found += [f"{a!r} meets {b!r}" for (a, box), (b, other) in combinations(boxes, 2) if _meet(box, other)]
    legends = [legend for axes in figure.axes if (legend := axes.get_legend()) is not None] + list(figure.legends)
    for legend in legends:
        found += ["a legend covers axes" for axes in figure.axes if _meet(legend.get_window_extent(), axes.bbox)]
    return found + [f"data of {axes.get_title()!r} are cut" for axes in figure.axes for _ in _cut(axes)]


def texts(figure: Figure) -> list[Text]:
    """All that is written, tick labels only where their ticks are in view."""
    found = [text for text in figure.texts if text.get_text()]
    for axes in figure.axes:
        found += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        found += [label for axis in (axes.xaxis, axes.yaxis) for label in _tick_labels(axis)]
        found += [] if axes.get_legend() is None else [*axes.get_legend().get_texts(), axes.get_legend().get_title()]
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def _tick_labels(axis: Axis) -> Iterator[Text]:
    low, high = sorted(axis.get_view_interval())
    yield axis.get_offset_text()
    for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
        if low <= tick.get_loc() <= high and tick.label1.get_visible():
            yield tick.label1


def _cut(axes: Axes) -> Iterator[object]:
    """Lines and error bars with a point outside the axes, or a marker on their edge."""
    corners = np.array(axes.transAxes.transform([(0, 0), (1, 1)]))
    view = np.stack([corners[0] - 0.5, corners[1] + 0.5])
    for line in axes.lines:
        # a level across the axes is in their coordinates along x
        points = line.get_transform().transform(line.get_xydata())
        if (points < view[0]).any() or (points > view[1]).any():
            yield line
    for bars in axes.collections:
        if isinstance(bars, LineCollection):
            ends = np.concatenate([bars.get_transform().transform(segment) for segment in bars.get_segments()])
            if (ends < view[0]).any() or (ends > view[1]).any():
                yield bars


def _within(box: BboxBase, canvas: BboxBase) -> bool:
    return bool(box.x0 >= canvas.x0 and box.y0 >= canvas.y0 and box.x1 <= canvas.x1 and box.y1 <= canvas.y1)


def _meet(box: BboxBase, other: BboxBase) -> bool:
    """Whether two boxes share more than a pixel each way."""
    across = min(box.x1, other.x1) - max(box.x0, other.x0)
    up = min(box.y1, other.y1) - max(box.y0, other.y0)
    return bool(across > 1 and up > 1)
