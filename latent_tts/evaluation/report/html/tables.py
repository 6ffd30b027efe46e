"""The tables of report.html: every number of the run, beside a picture of its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

from latent_tts.aggregation import MajorityVoting
from latent_tts.evaluation.report.html.markup import Markup, cell, element, joined, table
from latent_tts.evaluation.results import Cell, Metrics, StrategyResult, answers, curves, results
from latent_tts.evaluation.results import cell as cell_of
from latent_tts.evaluation.strategies import SINGLE

_WIDTH, _HEIGHT, _MARGIN = 180, 16, 5  # of a drawn interval, in pixels


def results_table(metrics: Metrics) -> Markup:
    """Every strategy at its full budget."""
    rows = results(metrics)
    scale = IntervalScale([row.accuracy for row in rows])
    voting = next((row.accuracy.value for row in rows if row.strategy.name == MajorityVoting.family), None)
    header = ["strategy", "accuracy %", "95 % interval", scale.label, "minus voting", "head-room", "token steps"]
    return table(
        "strategies", header, [_result(row, scale, voting) for row in rows], "Every strategy at its full budget"
    )


def _result(row: StrategyResult, scale: IntervalScale, voting: float | None) -> list[Markup]:
    difference, head_room = row.difference, row.head_room
    return [
        cell(row.strategy.label(), heading=True),
        cell(row.accuracy.percent(), row.accuracy.value),
        cell(row.accuracy.interval(), row.accuracy.bounds[0]),
        cell(scale.drawn(row.accuracy, voting), row.accuracy.value),
        cell("", "") if difference is None else cell(signed(difference), difference.value),
        cell("", "") if head_room is None else cell(f"{100 * head_room:.0f} %", head_room),
        cell(f"{row.token_steps:,.0f}", row.token_steps),
    ]


def curves_table(metrics: Metrics) -> Markup:
    """Every strategy against k."""
    ks = [int(k) for k in metrics["coverage"]]
    rows = {one: {1: cell_of(metrics, one)} for one in [*answers(metrics), SINGLE]} | curves(metrics)
    cells = [[cell(one.label(), heading=True), *(_point(points.get(k)) for k in ks)] for one, points in rows.items()]
    return table("curves", ["strategy", *(f"k = {k}" for k in ks)], cells, "Accuracy against the number of rollouts k")


def _point(shown: Cell | None) -> Markup:
    if shown is None:
        return cell("", "")
    return cell(joined([shown.percent(), element("small", shown.interval())]), shown.value)


def signed(difference: Cell) -> Markup:
    """A difference in points with its interval; strong where the interval leaves 0 out."""
    value, _, interval = difference.signed("\n").partition("\n")
    low, high = difference.bounds
    return joined([element("b" if low > 0 or high < 0 else "span", value), element("small", interval)])


class IntervalScale:
    """A common axis of intervals: from one multiple of 5 % to another."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        bounds = [bound for one in cells for bound in one.bounds]
        self.low = math.floor(20 * min(bounds)) / 20
        self.high = max(math.ceil(20 * max(bounds)) / 20, self.low + 0.05)

    @property
    def label(self) -> Markup:
        ends = [element("span", f"{100 * end:.0f}") for end in (self.low, self.high)]
        return element("span", *ends, class_="scale")

    def drawn(self, shown: Cell, reference: float | None) -> Markup:
        """An interval as a line, its value as a dot, and a reference as a thin line."""
        low, high = (self._x(bound) for bound in shown.bounds)
        middle = _HEIGHT / 2
        parts = [element("line", x1=low, x2=high, y1=middle, y2=middle, class_="interval")]
        parts.append(element("circle", cx=self._x(shown.value), cy=middle, r=3.5))
        if reference is not None:
            x = self._x(reference)
            parts.insert(0, element("line", x1=x, x2=x, y1=0, y2=_HEIGHT, class_="reference"))
        return element(
            "svg", *parts, width=_WIDTH, height=_HEIGHT, class_="plot", role="img", aria_label=shown.text(" ")
        )

    def _x(self, value: float) -> float:
        return round(_MARGIN + (value - self.low) / (self.high - self.low) * (_WIDTH - 2 * _MARGIN), 1)
