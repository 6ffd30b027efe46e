"""The chapter of the study: its page holds what the kept runs say, and its tables are read off them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands.study_page import main as study_page
from latent_tts.errors import UserError
from latent_tts.evaluation.chapter.figures import FIGURES, best_of, families
from latent_tts.evaluation.chapter.kept import read_kept
from latent_tts.evaluation.chapter.page import filled, numbers_without_a_source
from latent_tts.evaluation.chapter.tables import TABLES, points, shown
from latent_tts.evaluation.problem_statistics import BY_AGREEMENT
from latent_tts.evaluation.results import Cell
from tests.geometry import faults
from tests.metrics_json import make_metrics_json

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "study.md").read_text(encoding="utf-8")


def test_every_table_of_the_page_is_what_the_kept_runs_say():
    assert filled(PAGE, DOCS / "runs") == PAGE


def test_every_number_of_its_text_stands_in_a_table_beside_it():
    assert numbers_without_a_source(PAGE) == []


def test_every_number_of_the_readme_s_story_stands_in_a_table_of_the_page():
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    story = readme.partition("## What parallel scaling gives\n")[2].partition("\n## ")[0]
    tables = "\n".join(line for line in PAGE.splitlines() if line.startswith("|"))
    assert "97.0" in story and numbers_without_a_source(f"{story}\n{tables}") == []


def test_every_figure_of_the_page_is_there_and_small():
    named = [line.split("(")[1].rstrip(")") for line in PAGE.splitlines() if line.startswith("![")]
    assert named and all(0 < (DOCS / name).stat().st_size < 200_000 for name in named)
    assert {Path(name).stem for name in named} <= set(FIGURES)


def test_a_number_that_no_table_of_its_section_has_is_found():
    page = "## a\nIt is 12.5 of 40.1, at `noise-0.5`.\n\n| x | 12.5 (10.0-14.0) |\n\n## b\nAnd 12.5 again.\n"
    assert numbers_without_a_source(page) == ["40.1", "0.5", "12.5"]


def interval(mean: float) -> dict[str, object]:
    return {"mean": mean, "interval": [mean - 0.02, mean + 0.02]}


@pytest.fixture
def kept(tmp_path) -> Path:
    """Two strengths of noise and dropout with their differences, in the layout of docs/runs."""
    folder = tmp_path / "coverage-tiny-codi"
    folder.mkdir()
    beside = []
    for i, name in enumerate(("noise-0.5", "noise-1", "dropout-0.2")):
        metrics = make_metrics_json(16, 0.5 + i / 10) | {"diversity": {"mean": i / 10, "per_step": [i / 10] * 6}}
        (folder / f"{name}.json").write_text(json.dumps(metrics))
        outcomes = {one: {"plain": interval(-0.3), "given_greedy": None} for one in ("single rollout", "coverage")}
        risk = {BY_AGREEMENT: {"area": 0.25, "at": {f"{share / 10:g}": interval(0.3) for share in range(1, 11)}}}
        differences = {"coverage@16": interval(0.05)} if i else {}
        found = {"differences": differences, "full_differences": {"single": interval(-0.01)} if i else {}}
        beside.append(
            {"name": name, "problems": {"diversity_and": outcomes, "risk": risk, "luck": 0.21, "near_miss": 0.4}}
            | found
        )
    (folder / "comparison.json").write_text(json.dumps({"runs": beside}))
    (folder / "head.json").write_text(json.dumps({"state": "finished"}))  # of a training, which has no rollouts
    return tmp_path


def test_runs_stand_in_the_order_of_their_study_and_trainings_are_none(kept):
    study = read_kept(kept / "coverage-tiny-codi")
    assert [run.name for run in study.runs] == ["noise-0.5", "noise-1", "dropout-0.2"] and study.num_problems == 500
    assert study.run("noise-1").at("coverage@16") is not None and study.run("noise-1").at("coverage@17") is None
    with pytest.raises(UserError, match="has no run 'noise-3'"):
        study.run("noise-3")
    with pytest.raises(UserError, match="holds no run"):
        read_kept(kept)


def test_tables_are_read_off_the_files(kept):
    study = read_kept(kept / "coverage-tiny-codi")
    run = study.run("noise-1")
    header, rows = TABLES["coverage"](study)
    row = dict(zip(header, rows[1], strict=True))
    assert row["run"] == "`noise-1`" and row["cosine distance"] == "0.100" and row["N"] == "16"
    assert row["coverage @ 16"] == shown(run.at("coverage@16"))
    assert (row["coverage by another problem's"], row["of a number beside the gold"]) == ("21.0", "40.0")
    assert row["different answers"] == ""
    assert row["coverage, minus `noise-0.5`"] == "**+5.0 (+3.0 to +7.0)**" and rows[0][-1] == ""
    for name in TABLES.keys() - {"controls", "sizes"}:
        header, rows = TABLES[name](study)
        assert rows and all(len(row) == len(header) for row in rows), name
    assert TABLES["diversity"](study)[1][0][1] == "**-0.30 (-0.32 to -0.28)**"
    assert TABLES["risk"](study)[1][0][2:4] == ["0.250", "30.0 (28.0\N{EN DASH}32.0)"]
    assert points(Cell(0.01, -0.01, 0.03)) == "+1.0 (-1.0 to +3.0)"


def test_reward_models_stand_by_kind_with_a_column_for_every_seed(tmp_path):
    """Recall@1 of their trainings, and the paired gain over voting that their runs have."""
    for seed, recall in ((0, 0.6), (1, 0.65)):
        metrics = make_metrics_json(16, 0.5)
        metrics["difference_to_majority_voting"]["best_of_n@16"] = interval(0.01 * seed)
        (tmp_path / f"one-hot-{seed}.json").write_text(json.dumps(metrics))
        training = {"state": "finished", "best": {"metric": "val/recall_at_1", "value": recall}}
        (tmp_path / f"rm-one-hot-{seed}.json").write_text(json.dumps(training))
    (tmp_path / "shipped-0.json").write_text(json.dumps(make_metrics_json(16, 0.5)))
    header, rows = TABLES["reward"](read_kept(tmp_path))
    row = dict(zip(header, rows[0], strict=True))
    assert row["reward model"] == "`one-hot`" and rows[1][:3] == ["`shipped`", "", ""]
    assert (row["recall @ 1, seed 0"], row["recall @ 1, seed 1"]) == ("60.0", "65.0")
    assert row["best-of-N minus voting, seed 1"] == "+1.0 (-1.0 to +3.0)"
    assert faults(FIGURES["reward"][0]([read_kept(tmp_path)])) == []


def test_a_size_stands_with_its_compute(tmp_path):
    """Millions of parameters, which the run is named after, times the positions of k rollouts."""
    for name in ("0.5M", "3.3M"):
        (tmp_path / f"{name}.json").write_text(json.dumps(make_metrics_json(16, 0.5)))
    study = read_kept(tmp_path)
    header, rows = TABLES["sizes"](study)
    steps = study.runs[1].metrics["token_steps"]["rollouts"]["4"]
    assert [row[0] for row in rows] == ["`0.5M`", "`3.3M`"]
    assert (
        dict(zip(header, rows[1], strict=True))["10\N{SUPERSCRIPT SIX} parameters x token steps @ 4"]
        == f"{3.3 * steps:,.0f}"
    )
    assert faults(FIGURES["sizes"][0]([study])) == []


def test_a_run_of_more_rollouts_is_of_its_sampler_and_is_compared_at_the_others_number(kept):
    folder = kept / "coverage-tiny-codi"
    more = make_metrics_json(64, 0.9) | {"diversity": {"mean": 0.2, "per_step": [0.2] * 6}}
    (folder / "noise-1-n64.json").write_text(json.dumps(more))
    comparison = json.loads((folder / "comparison.json").read_text())
    comparison["runs"].append(comparison["runs"][1] | {"name": "noise-1-n64"})
    (folder / "comparison.json").write_text(json.dumps(comparison))
    study = read_kept(folder)
    assert best_of(families(study)["Gaussian noise"]).name == "noise-1-n64"
    header, rows = TABLES["coverage"](study)
    row = dict(zip(header, rows[-1], strict=True))
    assert (row["run"], row["N"], row["coverage, minus `noise-0.5`"]) == (
        "`noise-1-n64`",
        "64",
        "**+5.0 (+3.0 to +7.0)**",
    )
    assert row["coverage @ 64"] and not rows[0][header.index("coverage @ 64")]


def test_within_a_budget_stands_the_largest_k_that_it_pays_for(kept):
    study = read_kept(kept / "coverage-tiny-codi")
    steps = study.runs[0].metrics["token_steps"]["rollouts"]
    for budget, text in zip((260, 450, 850), TABLES["equal-steps"](study)[1][0][1::2], strict=True):
        ks = [int(k) for k, cost in steps.items() if cost <= budget]
        assert text.startswith(f"k = {max(ks)}:" if ks else ""), budget


def test_of_every_sampler_the_figure_takes_the_strength_that_covers_most(kept):
    found = families(read_kept(kept / "coverage-tiny-codi"))
    assert {name: [run.name for run in runs] for name, runs in found.items()} == {
        "Gaussian noise": ["noise-0.5", "noise-1"],
        "MC-dropout": ["dropout-0.2"],
    }
    assert best_of(found["Gaussian noise"]).name == "noise-1"


@pytest.mark.parametrize("name", ["coverage", "diversity", "risk", "strategies"])
def test_nothing_is_cut_or_covered_in_the_figures_of_the_chapter(kept, name):
    study = read_kept(kept / "coverage-tiny-codi")
    assert faults(FIGURES[name][0]([study] * 3)) == []


def test_the_command_fills_the_page_and_draws_what_is_kept(kept, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A\n<!-- over-k: coverage-tiny-codi -->\nold\n<!-- end -->\nB\n")
    study_page(page, kept, tmp_path / "figures")
    text = page.read_text()
    assert "old" not in text and text.startswith("# A\n<!-- over-k") and text.endswith("<!-- end -->\nB\n")
    assert filled(text, kept) == text
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"coverage", "diversity", "risk"}
    page.write_text("<!-- nothing: coverage-tiny-codi -->\n<!-- end -->")
    with pytest.raises(UserError, match="names a table 'nothing'"):
        study_page(page, kept, tmp_path / "figures")
    with pytest.raises(UserError, match="cannot be read"):
        study_page(tmp_path / "none.md", kept, tmp_path / "figures")
