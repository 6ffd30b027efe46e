"""Figures of several runs on the same problems, a question each: coverage and accuracy against N and compute, all runs in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from latent_tts.evaluation.comparison import ComparedRun, Comparison
from latent_tts.evaluation.problem_statistics import BY_AGREEMENT
from latent_tts.evaluation.report.figures.style import (
    HEIGHT,
    SMALL,
    Curve,
    bars_at_the_end,
    draw_bar,
    draw_curve,
    k_ticks,
    legend_at_the_right,
    look,
    new_figure,
    percent_limits,
    step_ticks,
)
from latent_tts.evaluation.results import Cell, cell, curves, token_steps
from latent_tts.evaluation.strategies import COVERAGE, SINGLE, Strategy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COMPARISON_CAPTIONS = {
    "coverage_over_k": "Coverage of every run against the number of rollouts k.",
    "accuracy_over_k": "Accuracy of every run against the number of rollouts k, an aggregation a panel.",
    "coverage_over_compute": "Coverage of every run against token steps per problem.",
    "accuracy_over_compute": "Accuracy of every run against token steps per problem, an aggregation a panel.",
    "risk_over_coverage": "Wrong answers of majority voting in every run when those with the least agreement are withheld.",
    "diversity_and_coverage": "Coverage, majority voting and a single rollout of every run against the diversity of its latents.",
}
"""Name -> what it shows, in a sentence."""

MOST_PANELS = 6
_BARS = "bars: 95 % intervals"
_VOTING = Strategy("majority_voting", kind="aggregation")
_LEVELS = {"coverage": (COVERAGE, "-"), "majority voting": (_VOTING, "--"), "single rollout": (SINGLE, ":")}


def comparison_figures(comparison: Comparison) -> dict[str, Figure]:
    """All figures of a comparison that have something to show, by name, in the order of `COMPARISON_CAPTIONS`."""
    runs = comparison.runs
    covered = [COVERAGE]
    chosen = list(dict.fromkeys(one for run in runs for one in curves(run.metrics) if one != COVERAGE))[:MOST_PANELS]
    drawn = {
        "coverage_over_k": _over_k(comparison, "Coverage against rollouts", covered),
        "accuracy_over_k": _over_k(comparison, "Accuracy against rollouts", chosen),
        "coverage_over_compute": _over_compute(comparison, "Coverage against compute", covered),
        "accuracy_over_compute": _over_compute(comparison, "Accuracy against compute", chosen),
        "risk_over_coverage": _risk(comparison),
        "diversity_and_coverage": _diversity(comparison),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _over_k(comparison: Comparison, what: str, strategies: Sequence[Strategy]) -> Figure | None:
    figure, panels = _panels(comparison, what, strategies, "rollouts k")
    for axes, one in zip(panels, strategies, strict=True):
        found = _curves(comparison.runs, one, compute=False)
        for curve in found:
            draw_curve(axes, curve, band=False)
        ks = sorted({int(x) for curve in found for x in curve.x})
        bars_at_the_end(axes, ks[-1], [(curve.cells[-1], curve.look) for curve in found])
        k_ticks(axes, ks, narrow=len(strategies) > 1)
        percent_limits(axes, [shown for curve in found for shown in curve.cells])
    return _finished(figure, panels)


def _over_compute(comparison: Comparison, what: str, strategies: Sequence[Strategy]) -> Figure | None:
    figure, panels = _panels(comparison, what, strategies, "token steps per problem")
    for axes, one in zip(panels, strategies, strict=True):
        found = _curves(comparison.runs, one, compute=True)
        for curve in found:
            draw_curve(axes, curve, band=False)
            draw_bar(axes, curve.x[-1], curve.cells[-1], curve.look)
        step_ticks(axes, [x for curve in found for x in curve.x], most=5)
        percent_limits(axes, [shown for curve in found for shown in curve.cells])
    return _finished(figure, panels)


def _curves(runs: Sequence[ComparedRun], one: Strategy, compute: bool) -> list[Curve]:
    """Of the runs that have the strategy; a run looks the same everywhere."""
    found = []
    for i, run in enumerate(runs):
        if cells := curves(run.metrics).get(one):
            x = [token_steps(run.metrics, one.at(k)) for k in cells] if compute else list(cells)
            found.append(Curve(_name(run), x, list(cells.values()), look(i)))
    return found


def _name(run: ComparedRun) -> str:
    return run.label.replace("sampler=", "")


def _panels(
    comparison: Comparison, what: str, strategies: Sequence[Strategy], x_label: str
) -> tuple[Figure, list[Axes]]:
    """Axes for each strategy, two beside each other, without any where there is no strategy."""
    columns = min(2, max(1, len(strategies)))
    rows = -(-len(strategies) // columns)
    height = max(HEIGHT, 1.0 + 3.0 * rows)
    figure = new_figure(_title(comparison, what), height, 5.4 + 2.9 * columns)
    if not strategies:
        return figure, []
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[len(strategies) :]:
        axes.remove()
    for axes, one in zip(panels, strategies, strict=False):
        axes.set_title(one.label(), fontsize=SMALL + 1)
        axes.set(xlabel=x_label, ylabel="accuracy in %" if one != COVERAGE else "coverage in %")
        axes.grid(alpha=0.25)
    return figure, panels[: len(strategies)]


def _title(comparison: Comparison, what: str) -> str:
    count = comparison.num_problems
    return f"{what}\n{len(comparison.runs)} runs on the same {count:,} {'problem' if count == 1 else 'problems'}"


def _finished(figure: Figure, panels: Sequence[Axes]) -> Figure | None:
    """One legend for all panels, of the one with the most runs; None without panels."""
    if not panels:
        return None
    fullest = max(panels, key=lambda axes: len(axes.get_legend_handles_labels()[1]))
    legend_at_the_right(figure, fullest, _BARS)
    return figure


# Risk against the share answered ---------------------------------------------------------------------------------------


def _risk(comparison: Comparison) -> Figure | None:
    """Of majority voting by its agreement, which every run has."""
    found = [{} if run.problems is None else run.problems.risks for run in comparison.runs]
    shown = {i: risks[BY_AGREEMENT] for i, risks in enumerate(found) if BY_AGREEMENT in risks}
    if not shown:
        return None
    figure = new_figure(_title(comparison, "Risk when answers with little agreement are withheld"))
    axes = figure.subplots()
    axes.set(xlabel="problems answered in %", ylabel="wrong among the answered in %")
    axes.grid(alpha=0.25)
    for i, risk in shown.items():
        name = f"{_name(comparison.runs[i])}: area {risk.area:.3f}"
        draw_curve(
            axes,
            Curve(name, [100 * share for share in risk.at], [Cell(*one) for one in risk.at.values()], look(i)),
            False,
        )
    legend_at_the_right(figure, axes, "")
    return figure


# Diversity against coverage -----------------------------------------------------------------------------------------


def diversity_points(runs: Sequence[ComparedRun], one: Strategy) -> list[tuple[float, Cell]]:
    """Mean diversity of every run, and its value of a strategy at its full budget; runs without either are left out."""
    found = []
    for run in runs:
        shown = _at_full(run, one)
        if run.metrics["diversity"]["mean"] is not None and shown is not None:
            found.append((float(run.metrics["diversity"]["mean"]), shown))
    return found


def _at_full(run: ComparedRun, one: Strategy) -> Cell | None:
    if one == SINGLE:
        return cell(run.metrics, SINGLE)
    return curves(run.metrics).get(one, {}).get(run.metrics["num_rollouts"])


def _diversity(comparison: Comparison) -> Figure | None:
    """Every run is a marker, and what lies on one line is of one sampler."""
    runs = [run for run in comparison.runs if run.metrics["diversity"]["mean"] is not None]
    if len(runs) < 2:
        return None
    figure = new_figure(_title(comparison, "Diversity against coverage"))
    axes = figure.subplots()
    axes.set(xlabel="mean pairwise cosine distance of the latents", ylabel="right in %")
    axes.grid(alpha=0.25)
    for name, (one, style) in _LEVELS.items():
        for i, family in enumerate(_families(runs)):
            points = sorted(diversity_points(family, one), key=lambda point: point[0])
            x, y = [point[0] for point in points], [100 * point[1].value for point in points]
            axes.plot(x, y, linestyle=style, color="#777777", linewidth=1.1, zorder=1, label=name if i == 0 else None)
    for i, run in enumerate(runs):
        for name, (one, _) in _LEVELS.items():
            for place, shown in diversity_points([run], one):
                draw_bar(axes, place, shown, look(i), _name(run) if name == "coverage" else None)
    axes.margins(x=0.05)
    legend_at_the_right(figure, axes, _BARS)
    return figure


def _families(runs: Sequence[ComparedRun]) -> list[list[ComparedRun]]:
    """Runs of the same sampler."""
    found: dict[str, list[ComparedRun]] = {}
    for run in runs:
        evaluated = run.metrics.get("evaluated") or {}
        found.setdefault((evaluated.get("sampler") or {}).get("name", ""), []).append(run)
    return list(found.values())
