"""The figures of several runs, one for each question, all runs in each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from latent_tts.evaluation.comparison import ComparedRun, Comparison
from latent_tts.evaluation.report.figures.style import (
    INTERVALS,
    Curve,
    draw_bar,
    draw_curve,
    legend_beside,
    look,
    new_axes,
    percent_limits,
    step_ticks,
)
from latent_tts.evaluation.results import curves, token_steps
from latent_tts.evaluation.strategies import COVERAGE, Strategy, of_aggregation
from latent_tts.evaluation.summary import BASELINE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Place = Callable[[ComparedRun, Strategy, int], float]
"""Where a strategy at k rollouts stands on the axis."""


def comparison_figures(comparison: Comparison) -> dict[str, Figure]:
    """By name: coverage, voting and each run's best aggregation against k and against token steps, diversity against coverage."""
    drawn: dict[str, Figure] = {}
    for question, choose in _QUESTIONS.items():
        if any(choose(run) is not None for run in comparison.runs):
            name = question.replace(" ", "_")
            drawn[f"{name}_against_k"] = _curves(comparison, choose, question, _by_k)
            drawn[f"{name}_against_token_steps"] = _curves(comparison, choose, question, _by_steps)
    if all(run.metrics["diversity"]["mean"] is not None for run in comparison.runs):
        drawn["diversity_and_coverage"] = _diversity(comparison)
    return drawn


def _voting(run: ComparedRun) -> Strategy | None:
    voting = of_aggregation(BASELINE)
    return voting if voting in curves(run.metrics) else None


def _best(run: ComparedRun) -> Strategy | None:
    """The aggregation that is right most often at the run's full budget, where there is a choice."""
    found = {one: cells[max(cells)].value for one, cells in curves(run.metrics).items() if one.kind == "aggregation"}
    return max(found, key=lambda one: found[one]) if len(found) > 1 else None


_QUESTIONS: dict[str, Callable[[ComparedRun], Strategy | None]] = {
    "coverage": lambda run: COVERAGE,
    "majority voting": _voting,
    "best aggregation": _best,
}


def _by_k(run: ComparedRun, one: Strategy, k: int) -> float:
    return k


def _by_steps(run: ComparedRun, one: Strategy, k: int) -> float:
    return token_steps(run.metrics, one.at(k))


def _curves(
    comparison: Comparison, choose: Callable[[ComparedRun], Strategy | None], question: str, place: Place
) -> Figure:
    """A curve for each run, its interval at the end."""
    chosen = [(run, one) for run in comparison.runs if (one := choose(run)) is not None]
    lines = [
        Curve(
            f"{run.label}: {one.label()}" if choose is _best else run.label,
            [place(run, one, k) for k in curves(run.metrics)[one]],
            list(curves(run.metrics)[one].values()),
            look(i),
        )
        for i, (run, one) in enumerate(chosen)
    ]
    against = "the number of rollouts" if place is _by_k else "compute"
    title = f"{question.capitalize()} against {against}\n{comparison.num_problems:,} problems"
    x_label = "rollouts k" if place is _by_k else "token steps per problem"
    figure, axes = new_axes(title, x_label, f"{question} in %", len(lines))
    for line in lines:
        draw_curve(axes, line, band=len(lines) <= 2)
        draw_bar(axes, line.x[-1], line.cells[-1], line.look)
    if place is _by_k:
        axes.set_xscale("log", base=2)
        ks = sorted({k for line in lines for k in line.x})
        axes.set_xticks(ks, [f"{k:g}" for k in ks])
    else:
        step_ticks(axes, [x for line in lines for x in line.x])
    percent_limits(axes, [cell for line in lines for cell in line.cells])
    legend_beside(axes, INTERVALS)
    return figure


def _diversity(comparison: Comparison) -> Figure:
    """A point for each run: how far its rollouts lie apart, and how often one of them is right."""
    title = f"Coverage against diversity\n{comparison.num_problems:,} problems"
    figure, axes = new_axes(
        title, "mean pairwise cosine distance", "coverage at the full budget in %", len(comparison.runs)
    )
    tops = [curves(run.metrics)[COVERAGE][run.metrics["num_rollouts"]] for run in comparison.runs]
    for i, (run, top) in enumerate(zip(comparison.runs, tops, strict=True)):
        draw_bar(axes, run.metrics["diversity"]["mean"], top, look(i), run.label)
    percent_limits(axes, tops)
    legend_beside(axes, INTERVALS)
    return figure
