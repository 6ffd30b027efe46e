"""Figures of the chapter, each a function of kept studies, a panel for every one."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from latent_tts.evaluation.chapter.kept import KeptRun, KeptStudy, controls_in_order
from latent_tts.evaluation.chapter.reward_kinds import GAINS, gain, runs_of_kinds
from latent_tts.evaluation.chapter.tables import parameter_steps
from latent_tts.evaluation.problem_statistics import BY_AGREEMENT
from latent_tts.evaluation.report.figures.style import (
    SMALL,
    Curve,
    Look,
    draw_bar,
    draw_curve,
    grey,
    legend_of_figure,
    look,
    new_figure,
    percent_limits,
    step_ticks,
)
from latent_tts.evaluation.results import Cell, Metrics, cell, curves, searches, token_steps
from latent_tts.evaluation.strategies import COVERAGE, GREEDY, Strategy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAMILIES = {
    "noise": "Gaussian noise",
    "dropout": "MC-dropout",
    "native": "native Gaussian (CoLaR)",
    "relative": "noise relative to the latents",
    "rollout-dropout": "one dropout mask per rollout",
    "values": "singular values of the values",
    "answers": "drawn answers alone",
    "noise-answers": "noise and drawn answers",
    "native-answers": "noise and drawn answers",
    "written": "written steps, drawn",
}
"""First words of a run's name -> its sampler; runs of one differ in strength."""
_LOOKS = {name: i for i, name in enumerate(dict.fromkeys(FAMILIES.values()))}


_NUMBER = re.compile(r"n?\d+(\.\d+)?")


def family_of(run: KeptRun) -> str:
    """The name of a run without its numbers: `noise-1-answers-0.7` is of `noise-answers`, `noise-1-n256` of `noise`."""
    return "-".join(word for word in run.name.split("-") if not _NUMBER.fullmatch(word))


def families(study: KeptStudy) -> dict[str, list[KeptRun]]:
    """Runs by sampler, those that the chapter knows, in the order of their strengths."""
    found: dict[str, list[KeptRun]] = {}
    for run in study.runs:
        if family_of(run) in FAMILIES:
            found.setdefault(FAMILIES[family_of(run)], []).append(run)
    return found


def best_of(runs: Sequence[KeptRun]) -> KeptRun:
    """The run of the highest coverage at its full budget, the first of equal ones."""
    return max(runs, key=_coverage)


def _coverage(run: KeptRun) -> float:
    found = run.at(f"coverage@{run.top}")
    assert found is not None
    return found.value


def coverage_figure(studies: Sequence[KeptStudy]) -> Figure:
    """Coverage against token steps, of every sampler the strength that covers most."""
    figure, panels = _panels(studies, "Coverage against token steps; of each sampler the strength that covers most")
    for axes, study in zip(panels, studies, strict=True):
        drawn = []
        for name, runs in families(study).items():
            run = best_of(runs)
            cells = run.curve("coverage")
            steps = [token_steps(run.metrics, COVERAGE.at(k)) for k in cells]
            drawn.append(Curve(name, steps, list(cells.values()), _look(name)))
        _draw(axes, drawn)
        axes.set(xlabel="token steps per problem", ylabel="coverage in %")
        step_ticks(axes, [x for curve in drawn for x in curve.x], most=4)
    return _finished(figure, panels, "bars: 95 % intervals")


def _draw(axes: Axes, drawn: Sequence[Curve]) -> None:
    for curve in drawn:
        draw_curve(axes, curve, band=False)
        draw_bar(axes, curve.x[-1], curve.cells[-1], curve.look)
    percent_limits(axes, [one for curve in drawn for one in curve.cells])


def _draw_with_dots(axes: Axes, curve: Curve, dots: Sequence[Cell], bars: int) -> list[Cell]:
    """A curve with bars at its last points, and dots at the same places; gives all that the axes have to hold."""
    draw_curve(axes, curve, band=False)
    for x, one in list(zip(curve.x, curve.cells, strict=True))[-bars:]:
        draw_bar(axes, x, one, curve.look)
    axes.plot(curve.x, [100 * one.value for one in dots], ":", color=curve.look.color, marker=".")
    return [*curve.cells, *dots]


def diversity_figure(studies: Sequence[KeptStudy]) -> Figure:
    """Coverage and a single rollout of every run against the diversity of its latents; runs of one sampler are joined."""
    figure, panels = _panels(studies, "Coverage (lines) and a single rollout (dots) against diversity, all strengths")
    for axes, study in zip(panels, studies, strict=True):
        shown: list[Cell] = []
        for name, runs in families(study).items():
            points = [(run.metrics["diversity"]["mean"], run) for run in runs if run.top == study.runs[0].top]
            known = sorted([(x, run) for x, run in points if x is not None], key=lambda point: point[0])
            if known:
                covered = [one for _, run in known if (one := run.at(f"coverage@{run.top}")) is not None]
                single = [one for _, run in known if (one := run.at("single")) is not None]
                curve = Curve(name, [x for x, _ in known], covered, _look(name))
                shown += _draw_with_dots(axes, curve, single, bars=len(covered))
        percent_limits(axes, shown)
        axes.set(xlabel="mean cosine distance", ylabel="right in %")
    return _finished(figure, panels, "coverage @ N with 95 % intervals")


def controls_figure(studies: Sequence[KeptStudy]) -> Figure:
    """A single rollout, and coverage, after its own latents and after others."""
    figure, panels = _panels(studies, "Answers after a rollout's own latents, and after others")
    for axes, study in zip(panels, studies, strict=True):
        runs = controls_in_order(study)
        for i, (key, label) in enumerate({"single": "single rollout", "coverage": "coverage @ N"}.items()):
            for place, run in enumerate(runs):
                found = run.at(key if key == "single" else f"coverage@{run.top}")
                if found is not None:
                    name = label if place == 0 else None
                    draw_bar(axes, place + 0.2 * (i - 0.5), found, look(i), name, horizontal=True)
        axes.set_yticks(range(len(runs)), [run.name for run in runs])
        axes.invert_yaxis()
        axes.set(xlabel="right in %", xlim=(-2, None))
    return _finished(figure, panels, "bars: 95 % intervals")


def risk_figure(studies: Sequence[KeptStudy]) -> Figure:
    """Wrong answers against the share of problems answered: by vote share of every sampler, or by every rule of a single run."""
    figure, panels = _panels(studies, "Wrong answers among those given, when the least sure are withheld")
    names = list(dict.fromkeys(name for study in studies for name in _risks(study)))
    for axes, study in zip(panels, studies, strict=True):
        drawn = []
        for name, risk in _risks(study).items():
            at = {100 * float(share): Cell(one["mean"], *one["interval"]) for share, one in risk["at"].items()}
            drawn.append(
                Curve(name, list(at), list(at.values()), _look(name) if name in _LOOKS else look(names.index(name)))
            )
        for curve in drawn:
            draw_curve(axes, curve, band=False)
        axes.set(xlabel="problems answered in %", ylabel="wrong in %", ylim=(-2, None))
    return _finished(figure, panels, "")


def strategies_figure(studies: Sequence[KeptStudy]) -> Figure:
    """Accuracy of every strategy of the first run against token steps: aggregations as curves over k, searches as points."""
    figure, panels = _panels(studies, "Accuracy against token steps, scores included")
    for axes, study in zip(panels, studies, strict=True):
        metrics = study.runs[0].metrics
        aggregations = [one for one in curves(metrics) if one != COVERAGE]
        points = [GREEDY, *searches(metrics)]
        drawn = [_over_steps(metrics, one, look(i)) for i, one in enumerate(aggregations)]
        for curve in drawn:
            draw_curve(axes, curve, band=False)
        for i, one in enumerate(points):
            draw_bar(axes, token_steps(metrics, one), cell(metrics, one), grey(i), one.label())
        percent_limits(
            axes, [*(one for curve in drawn for one in curve.cells), *(cell(metrics, one) for one in points)]
        )
        axes.set(xlabel="token steps per problem", ylabel="right in %")
        step_ticks(axes, [x for curve in drawn for x in curve.x], most=4)
    return _finished(figure, panels, "bars: 95 % intervals")


def sizes_figure(studies: Sequence[KeptStudy]) -> Figure:
    """Coverage (lines) and voting (dots) of every size against compute, from one rollout to N."""
    figure, panels = _panels(studies, "Coverage (lines) and voting (dots) against compute, k = 1 to N")
    for axes, study in zip(panels, studies, strict=True):
        shown: list[Cell] = []
        for i, run in enumerate(study.runs):
            covered, voting = run.curve("coverage"), run.curve("majority_voting")
            x = [parameter_steps(run, k) for k in covered]
            curve = Curve(run.name, x, list(covered.values()), look(i))
            shown += _draw_with_dots(axes, curve, list(voting.values()), bars=1)
        percent_limits(axes, shown)
        axes.set(xlabel="10⁶ parameters x token steps per problem", ylabel="right in %", xscale="log")
    return _finished(figure, panels, "bars: 95 % intervals")


def reward_figure(studies: Sequence[KeptStudy]) -> Figure:
    """What choosing by scores gains over voting, a bar for every seed of every kind of reward model."""
    figure, panels = _panels(studies, "Gain over voting by kind of reward model, a bar for every seed", height=6.2)
    for axes, study in zip(panels, studies, strict=True):
        kinds = runs_of_kinds(study)
        for i, name in enumerate(GAINS):
            for place, runs in enumerate(kinds.values()):
                for j, found in enumerate(gain(run, name) for run in runs.values()):
                    if found is not None:
                        height = place + 0.42 * (i - 0.5) + 0.12 * (j - 1)
                        draw_bar(axes, height, found, look(i), name if place == j == 0 else None, horizontal=True)
        axes.axvline(0, color="#888888", linewidth=0.8, zorder=0)
        axes.set_yticks(range(len(kinds)), list(kinds))
        axes.invert_yaxis()
        axes.set(xlabel="points over voting")
    return _finished(figure, panels, "bars: 95 % intervals")


def _over_steps(metrics: Metrics, one: Strategy, how: Look) -> Curve:
    cells = curves(metrics)[one]
    return Curve(one.label(), [token_steps(metrics, one.at(k)) for k in cells], list(cells.values()), how)


def _risks(study: KeptStudy) -> Mapping[str, Any]:
    """Sampler -> risk by vote share, of the strength that covers most; rule -> risk where there is one run."""
    if len(study.runs) == 1:
        return study.runs[0].risks
    best = {name: best_of(runs) for name, runs in families(study).items()}
    return {name: run.risks[BY_AGREEMENT] for name, run in best.items() if BY_AGREEMENT in run.risks}


FIGURES: Mapping[str, tuple[Callable[[Sequence[KeptStudy]], Figure], Sequence[str]]] = {
    "coverage": (coverage_figure, ("coverage-tiny-codi", "coverage-tiny-coconut", "coverage-tiny-colar")),
    "diversity": (diversity_figure, ("coverage-tiny-codi", "coverage-tiny-coconut", "coverage-tiny-colar")),
    "strategies": (strategies_figure, ("aggregation-tiny-coconut", "aggregation-tiny-colar")),
    "reward": (reward_figure, ("latent-rm-tiny-coconut",)),
    "sizes": (sizes_figure, ("size-tiny-colar",)),
    "controls": (controls_figure, ("controls-tiny-codi", "controls-tiny-coconut", "controls-tiny-colar")),
    "risk": (risk_figure, ("coverage-tiny-codi", "coverage-tiny-coconut", "coverage-tiny-colar")),
}
"""Name -> what draws it, and of which studies."""


def _panels(studies: Sequence[KeptStudy], title: str, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    lines = textwrap.wrap(title, 12 + 30 * len(studies))  # no wider than the panels: the legend stands right of them
    figure = new_figure("\n".join(lines), height, 2.2 + 2.9 * len(studies))
    panels = list(figure.subplots(1, len(studies), squeeze=False).flat)
    for axes, study in zip(panels, studies, strict=True):
        name = "-".join(study.name.split("-")[1:])
        axes.set_title(f"{name}: {study.num_problems} problems", fontsize=SMALL + 1)
        axes.grid(alpha=0.25)
    return figure, panels


def _look(name: str) -> Look:
    return look(_LOOKS[name])


def _finished(figure: Figure, panels: Sequence[Axes], note: str) -> Figure:
    """One legend right of the panels, of every name that one of them has."""
    named: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    legend_of_figure(figure, list(named.values()), list(named), note)
    return figure
