"""Figures: nothing is cut or covered, whatever the values, N, and names; and what is drawn is what was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from latent_tts.evaluation.comparison import ComparedRun, Comparison
from latent_tts.evaluation.problem_statistics import problem_statistics
from latent_tts.evaluation.record_table import table_of
from latent_tts.evaluation.report.figures import (
    CAPTIONS,
    COMPARISON_CAPTIONS,
    FIGURES,
    comparison_figures,
    figures,
)
from latent_tts.evaluation.report.figures.comparison import diversity_points
from latent_tts.evaluation.strategies import COVERAGE
from tests.geometry import faults
from tests.metrics_json import make_metrics_json
from tests.records import make_record


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_rollouts", "height", "num_aggregations"),
    [(1, 0.0, 1), (1, 1.0, 14), (16, 0.0, 14), (16, 0.5, 14), (16, 1.0, 1), (1024, 0.0, 1), (1024, 1.0, 14)],
)
def test_nothing_is_cut_and_nothing_is_covered(num_rollouts, height, num_aggregations):
    drawn = figures(make_metrics_json(num_rollouts, height, num_aggregations))
    assert {"accuracy", "compute"} <= set(drawn) <= set(FIGURES)
    assert {name: found for name, figure in drawn.items() if (found := faults(figure))} == {}


@pytest.mark.slow
def test_ticks_of_three_decimals_and_neighbouring_k_have_room():
    narrow = make_metrics_json(17, 0.5, spread=1e-5)
    narrow["confidence_interval"] = {}
    for name, figure in figures(narrow).items():
        assert faults(figure) == [], name


def test_the_geometry_sees_what_a_reader_would():
    figure = Figure(figsize=(3, 2))
    axes = figure.add_axes((0.3, 0.3, 0.6, 0.6))
    axes.plot([0, 1], [0, 2], label="line")
    axes.set_ylim(0, 1)
    axes.legend(loc="center")
    axes.text(0.4, 0.1, "one over")
    axes.text(0.42, 0.11, "the other")
    figure.text(0.9, 0.5, "runs out of the canvas")
    found = " ".join(faults(figure))
    assert "'runs out of the canvas' lies outside" in found and "'one over' meets 'the other'" in found
    assert "a legend covers axes" in found and "are cut" in found


def test_every_figure_names_model_set_and_number_of_problems():
    metrics = make_metrics_json(16, 0.5)
    for figure in figures(metrics).values():
        title = figure.get_suptitle().replace("\n", " ")
        assert (
            "coconut-of-a-long-name" in title and "with-a-long-name.jsonl" in title and "500 problems, N = 16" in title
        )


def test_curves_differ_by_more_than_colour():
    lines = figures(make_metrics_json(16, 0.5, 14))["accuracy"].axes[0].lines
    looks = [(str(line.get_marker()), str(line.get_linestyle())) for line in lines if np.size(line.get_xdata()) == 5]
    assert len(looks) == 15 and len(set(looks)) == 15


def test_every_figure_has_a_caption():
    assert list(CAPTIONS) == list(FIGURES) and all(text.endswith(".") for text in CAPTIONS.values())


def compared(num_rollouts: int, height: float, num_runs: int) -> Comparison:
    """Runs of long labels, of which the i-th lies i / 100 lower and is as diverse as i / 10."""
    made, seen = [], problem_statistics(table_of([make_record(i) for i in range(6)]))
    for i in range(num_runs):
        metrics = make_metrics_json(num_rollouts, max(0.0, height - i / 100))
        metrics["diversity"] = {"mean": i / 10, "per_step": [i / 10] * 6}
        label = f"sampler=MonteCarloDropout, p=0.{i}, sites=residual, scope=latent"
        made.append(ComparedRun(f"run-{i}", Path(f"run-{i}"), label, metrics, {}, {}, seen))
    return Comparison(tuple(made), 0, 500)


@pytest.mark.slow
@pytest.mark.parametrize(("num_rollouts", "height", "num_runs"), [(1, 0.0, 2), (16, 0.5, 13), (1024, 1.0, 13)])
def test_nothing_is_cut_or_covered_in_figures_of_several_runs(num_rollouts, height, num_runs):
    drawn = comparison_figures(compared(num_rollouts, height, num_runs))
    assert list(drawn) == list(COMPARISON_CAPTIONS)
    assert {name: found for name, figure in drawn.items() if (found := faults(figure))} == {}


def test_every_run_is_in_the_figures_of_a_comparison():
    comparison = compared(16, 0.5, 3)
    for name, figure in comparison_figures(comparison).items():
        assert len(figure.axes) == (3 if name.startswith("accuracy") else 1), name
        names = " ".join(text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts())
        assert all(f"p=0.{i}" in names for i in range(3)), name
    coverage = comparison_figures(comparison)["coverage_over_k"].axes[0].lines
    lines = [np.asarray(line.get_ydata()).tolist() for line in coverage if np.size(line.get_xdata()) == 5]
    assert lines == [[100 * v for v in run.metrics["coverage"].values()] for run in comparison.runs]


def test_diversity_is_drawn_against_what_each_run_reached():
    comparison = compared(16, 0.5, 3)
    found = diversity_points(comparison.runs, COVERAGE)
    assert [x for x, _ in found] == pytest.approx([0.0, 0.1, 0.2])
    assert [shown.value for _, shown in found] == [run.metrics["coverage"]["16"] for run in comparison.runs]
