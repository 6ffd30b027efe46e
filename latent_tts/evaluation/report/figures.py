"""The figures of a run: accuracy against k and against compute, and diversity at each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latent_tts.evaluation.report.tables import Cell, Metrics, answers, cell, curves, results, searches, token_steps
from latent_tts.evaluation.strategies import Strategy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACCURACY_FIGURE, COMPUTE_FIGURE, DIVERSITY_FIGURE = "accuracy", "compute", "diversity"

# Okabe & Ito: told apart by all eyes
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vP*X"


def figures(metrics: Metrics) -> dict[str, Figure]:
    """All figures by name; without diversity where there is a single rollout."""
    drawn = {ACCURACY_FIGURE: accuracy_figure(metrics), COMPUTE_FIGURE: compute_figure(metrics)}
    if any(value is not None for value in metrics["diversity"]["per_step"]):
        drawn[DIVERSITY_FIGURE] = diversity_figure(metrics)
    return drawn


def save_figures(drawn: Mapping[str, Figure], folder: Path) -> dict[str, str]:
    """Writes PNG files; returns name -> path relative to the folder's parent."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", dpi=120, metadata={"Software": None})
    return {name: f"{folder.name}/{name}.png" for name in drawn}


def accuracy_figure(metrics: Metrics) -> Figure:
    """Coverage and every aggregation against k, with interval bands, and the greedy answer as a line."""
    figure, axes = _axes("rollouts k", "accuracy in %")
    for colour, (one, cells) in zip(_cycle(), curves(metrics).items(), strict=False):
        _line(axes, list(cells), list(cells.values()), one, colour)
    for style, one in zip((":", "-."), answers(metrics), strict=False):
        axes.axhline(100 * cell(metrics, one).value, color="grey", linestyle=style, label=one.label())
    ks = [int(k) for k in metrics["coverage"]]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.legend(fontsize="small")
    return figure


def compute_figure(metrics: Metrics) -> Figure:
    """Accuracy of every strategy against the token steps it takes per problem."""
    figure, axes = _axes("token steps per problem", "accuracy in %")
    for colour, (one, cells) in zip(_cycle(), curves(metrics).items(), strict=False):
        _line(axes, [token_steps(metrics, one.at(k)) for k in cells], list(cells.values()), one, colour)
    for marker, one in zip(_MARKERS * 4, [*answers(metrics), *searches(metrics)], strict=False):
        _point(axes, token_steps(metrics, one), cell(metrics, one), one.label(), marker)
    axes.set_xscale("log")
    ticks = [*metrics["token_steps"]["rollouts"].values(), max(row.token_steps for row in results(metrics))]
    axes.set_xticks(ticks, [f"{steps:,.0f}" for steps in ticks])
    axes.minorticks_off()
    axes.legend(fontsize="small")
    return figure


def diversity_figure(metrics: Metrics) -> Figure:
    """Diversity at each latent step."""
    figure, axes = _axes("latent step", "mean pairwise cosine distance")
    per_step = metrics["diversity"]["per_step"]
    steps = [step for step, value in enumerate(per_step, start=1) if value is not None]
    axes.plot(steps, [per_step[step - 1] for step in steps], marker="o", color=_COLOURS[0])
    axes.set_ylim(bottom=0)
    if len(steps) <= 16:
        axes.set_xticks(steps)
    return figure


def _axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2))
    figure.subplots_adjust(left=0.1, right=0.98, bottom=0.12, top=0.97)
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25)
    return figure, axes


def _cycle() -> list[str]:
    return list(_COLOURS) * 4


def _line(axes: Axes, x: Sequence[float], cells: Sequence[Cell], one: Strategy, colour: str) -> None:
    style = "--" if one.kind == "coverage" else "-"
    axes.plot(x, [100 * c.value for c in cells], marker="o", color=colour, linestyle=style, label=one.label())
    low, high = ([100 * bound for bound in bounds] for bounds in zip(*(c.bounds for c in cells), strict=True))
    axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)


def _point(axes: Axes, x: float, shown: Cell, label: str, marker: str) -> None:
    low, high = shown.bounds
    reach = [[100 * (shown.value - low)], [100 * (high - shown.value)]]
    axes.errorbar([x], [100 * shown.value], yerr=reach, fmt=marker, color="dimgrey", label=label)
