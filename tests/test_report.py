"""Tables, report and figures: every number is there, in the width of a terminal."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html import escape
from pathlib import Path

import pytest
from rich.console import Console

from latent_tts.aggregation import BestOfN, MajorityVoting, WeightedVoting, k_grid
from latent_tts.evaluation import report
from latent_tts.evaluation.problem_values import choose
from latent_tts.evaluation.strategies import SINGLE, Strategy, of_aggregation, of_search
from latent_tts.evaluation.summary import EvaluationMetrics
from latent_tts.search import BeamSearch, ParticleFiltering
from tests.records import SEARCH, make_record

EVALUATED = {
    "backbone": {"name": "tiny", "fingerprint": "ab", "kind": "coconut", "num_latents": 6},
    "reward_model": {"name": "tiny-rm", "fingerprint": "cd"},
    "written": None,
    "sampler": {"name": "AdditiveGaussianNoise", "sigma": 0.5},
    "seed": 0,
    "data": {"source": "f.jsonl"},
}


def make_metrics(num_rollouts: int = 16, searches: tuple[Strategy, ...] = (SEARCH,)):
    metrics = EvaluationMetrics(num_rollouts, 3, [MajorityVoting(), BestOfN("mean")], searches)
    for seed in range(8):
        metrics.update(make_record(seed, num_rollouts, searches=searches))
    return metrics.compute() | {"throughput": {"rollouts_per_second": 118.04}}


@pytest.fixture(scope="module")
def metrics():
    return make_metrics()


def console_text(metrics, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    for table in report.console_tables(metrics):
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_console_tables_have_a_row_for_every_strategy_and_a_column_for_every_k(metrics):
    text = console_text(metrics)
    for name in ("greedy", "single rollout", "coverage", "majority voting", "best-of-N", "mean", "beam search @ 2x2"):
        assert re.search(rf"^ +{name} ", text, re.MULTILINE), name
    assert re.search(r"k = 1 .*k = 2 .*k = 4 .*k = 8 .*k = 16", text)


@pytest.mark.parametrize("num_rollouts", [16, 64])
def test_the_console_tables_fit_in_80_columns_without_cutting_a_number(num_rollouts):
    metrics = make_metrics(num_rollouts)
    text = console_text(metrics)
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert f"{100 * metrics['coverage']['16']:.1f}" in text


def test_the_interval_stands_below_its_value(metrics):
    low, high = metrics["confidence_interval"]["coverage@1"]
    lines = console_text(metrics).splitlines()
    row = next(i for i, line in enumerate(lines) if "coverage " in line)
    assert f"{100 * metrics['coverage']['1']:.1f}" in lines[row]
    assert f"{100 * low:.1f}{report.DASH}{100 * high:.1f}" in lines[row + 1]


def test_the_report_holds_the_tables_the_facts_and_the_figures(metrics):
    text = report.markdown(metrics | {"evaluated": EVALUATED}, {"accuracy": "figures/accuracy.png"})
    assert (
        "- backbone: tiny (coconut, 6 latent thoughts)\n- sampler: AdditiveGaussianNoise(sigma=0.5)\n- data: f.jsonl\n"
        in text
    )
    assert "- reward model: tiny-rm" in text and "![accuracy](figures/accuracy.png)" in text
    assert "8 problems, 16 rollouts each, 118.0 rollouts per second" in text and "invalid answers: " in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [row.count("|") for row in rows] == [6] * 8 + [7] * 7  # the table of all strategies, then the one over k
    low, high = metrics["confidence_interval"]["greedy"]
    assert (
        f"| greedy | {100 * metrics['accuracy']['greedy']:.1f} ({100 * low:.1f}{report.DASH}{100 * high:.1f}) |" in text
    )


def test_every_strategy_is_listed_with_its_own_compute(metrics):
    rows = {row.strategy.key: row for row in report.results(metrics)}
    assert list(rows) == [
        "greedy",
        "single",
        "majority_voting@16",
        "best_of_n_mean@16",
        "beam_search@2x2",
        "coverage@16",
    ]
    assert rows["beam_search@2x2"].token_steps == metrics["token_steps"]["beam_search"]["2x2"]
    assert rows["greedy"].token_steps == 15 and rows["majority_voting@16"].token_steps == 90
    assert rows["best_of_n_mean@16"].token_steps == 90 + 57
    assert rows["majority_voting@16"].difference is None and rows["best_of_n_mean@16"].difference is not None
    assert rows["best_of_n_mean@16"].head_room == metrics["head_room_recovered"]["best_of_n_mean"]


@pytest.mark.slow
def test_figures_are_the_same_bytes_every_time(drawn_figures, metrics, tmp_path):
    paths = report.save_figures(report.figures(metrics), tmp_path / "a" / "figures")
    again = report.save_figures(report.figures(metrics), tmp_path / "b" / "figures")
    assert paths == again and {"accuracy", "compute", "diversity"} <= set(paths)
    for path in map(Path, paths.values()):
        assert (tmp_path / "a" / path).read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "a" / path.with_suffix(".svg")).read_bytes().startswith(b"<?xml")
        for one in (path, path.with_suffix(".svg")):
            assert (tmp_path / "a" / one).read_bytes() == (tmp_path / "b" / one).read_bytes()


def test_a_figure_that_is_not_drawn_any_more_leaves_no_file(metrics, tmp_path):
    drawn = report.figures(metrics)
    report.save_figures(drawn, tmp_path / "figures")
    report.save_figures({"accuracy": drawn["accuracy"]}, tmp_path / "figures")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"accuracy.png", "accuracy.svg"}


def test_the_accuracy_figure_has_a_curve_for_coverage_and_every_aggregation(metrics):
    axes = report.figures(metrics)["accuracy"].axes[0]
    curves = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert {"coverage", "majority voting", "best-of-N (mean)", "greedy"} <= set(curves)
    assert list(curves["coverage"]) == pytest.approx([100 * v for v in metrics["coverage"].values()])  # type: ignore[arg-type]


def test_one_rollout_makes_a_report_too(tmp_path):
    metrics = make_metrics(num_rollouts=1, searches=())
    metrics["throughput"]["rollouts_per_second"] = None
    figures = report.figures(metrics)
    assert "diversity" not in figures
    text = report.markdown(metrics, {name: f"figures/{name}.png" for name in figures})
    assert "k = 1 |" in text and "8 problems, 1 rollouts each\n" in text and console_text(metrics)


@pytest.mark.parametrize(
    ("strategy", "key", "text"),
    [
        (SINGLE, "single", "single rollout"),
        (of_aggregation(BestOfN(), 4), "best_of_n@4", "best-of-N @ 4"),
        (of_aggregation(BestOfN("mean")), "best_of_n_mean", "best-of-N (mean)"),
        (
            of_aggregation(WeightedVoting("last", temperature=0.5), 16),
            "weighted_voting_last_t0.5@16",
            "weighted voting @ 16 (last, t0.5)",
        ),
        (of_aggregation(BestOfN(skip_invalid=True)), "best_of_n_skip_invalid", "best-of-N (skip invalid)"),
        (of_search(BeamSearch()), "beam_search@4x4", "beam search @ 4x4"),
    ],
)
def test_strategies_are_spelled_for_results_and_for_people(strategy, key, text):
    assert (strategy.key, strategy.label()) == (key, text)


def test_a_sweep_of_particle_filtering_is_a_row_each_and_no_curve_over_k():
    sweep = tuple(of_search(ParticleFiltering(num_particles)) for num_particles in k_grid(16))
    metrics = make_metrics(searches=sweep)
    assert [one.method for one in report.curves(metrics)] == ["coverage", "majority_voting", "best_of_n_mean"]
    rows = {row.strategy: row for row in report.results(metrics)}
    for search in sweep:
        value = metrics["accuracy"]["particle_filtering"][search.budget]
        assert rows[search].accuracy.value == value and rows[search].head_room is not None
        assert rows[search].token_steps == metrics["token_steps"]["particle_filtering"][search.budget]


@pytest.mark.slow
def test_a_report_is_equal_files_for_equal_records_with_its_diagnoses(drawn_figures, tmp_path):
    """What is found stands in the page and in report.md; records are gone through once."""
    metrics = make_metrics() | {"evaluated": EVALUATED}
    metrics["invalid_answer_rate"] = 0.2
    rows = [make_record(seed, 16, searches=(SEARCH,)) for seed in range(8)]
    rows = [replace(row, chosen=choose(row, [MajorityVoting(), BestOfN("mean")])) for row in rows]
    found = report.write_report(metrics, tmp_path / "a", rows, {"command": "evaluate.py --x"})
    report.write_report(metrics, tmp_path / "b", iter(rows), {"command": "evaluate.py --x"})
    assert any("do not parse" in one.name for one in found)
    for name in ("report.md", "report.html", "metrics.json"):
        content = (tmp_path / "a" / name).read_bytes()
        assert content == (tmp_path / "b" / name).read_bytes()
    for one in found:
        assert one.sentence in (tmp_path / "a" / "report.md").read_text()
        assert escape(one.name) in (tmp_path / "a" / "report.html").read_text()
    assert not [path.name for path in (tmp_path / "a").iterdir() if path.name.startswith(".")]
