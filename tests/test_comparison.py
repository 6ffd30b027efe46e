"""Several runs side by side: each figure is the run's own, each difference is paired problem by problem."""

from __future__ import annotations

import json
from dataclasses import replace
from math import comb
from pathlib import Path

import pytest

from commands.guard import main_guard
from commands.list import main as list_runs
from commands.report import main as report
from latent_tts.aggregation import BestOfN, MajorityVoting
from latent_tts.errors import UserError
from latent_tts.evaluation.comparison import compare
from latent_tts.evaluation.prediction_files import RecordWriter, prediction_path
from latent_tts.evaluation.records import Record
from latent_tts.evaluation.remake import Reading, remake_metrics
from latent_tts.evaluation.run_folder import write_run
from latent_tts.evaluation.run_labels import run_names
from latent_tts.evaluation.strategies import COVERAGE, GREEDY, SINGLE, of_aggregation, of_search, part_of
from latent_tts.metrics.intervals import difference_bounds
from latent_tts.search import BeamSearch
from tests.records import SEARCH, make_record

BASE = [make_record(seed, searches=(SEARCH,)) for seed in range(12)]


def other_rollouts(record: Record, seed: int, num_rollouts: int = 4) -> Record:
    """The same problem, drawn by another sampler."""
    drawn = make_record(seed, num_rollouts, searches=(SEARCH,))
    return replace(drawn, problem_id=record.problem_id, question=record.question, gold=record.gold)


OTHER = [other_rollouts(record, 100 + i) for i, record in enumerate(BASE)]


def write(
    folder: Path,
    records: list[Record],
    sigma: float = 0.5,
    num_rollouts: int = 4,
    rule: str = "tolerance",
    control: str | None = None,
) -> Path:
    settings = {
        "model.sampler.sigma": sigma,
        "model.aggregations": [part_of(BestOfN("mean")), part_of(MajorityVoting())],
        "model.search": [part_of(BeamSearch(2, 2))],
        "model.num_rollouts": num_rollouts,
        "model.num_latents": 3,
        "model.answer_rule": rule,
        "model.reward_model.fingerprint": "cd",
        "data.source": "f.jsonl",
    }
    evaluated = {
        "backbone": {"name": "tiny", "fingerprint": "ab", "kind": "coconut", "num_latents": 3},
        "reward_model": {"name": "tiny-rm", "fingerprint": "cd"},
        "written": None,
        "sampler": {"name": "AdditiveGaussianNoise", "sigma": sigma},
        "seed": 0,
        "answer_rule": rule,
        "latent_control": control,
    }
    write_run(folder, {"settings": settings, "evaluated": evaluated})
    writer = RecordWriter(prediction_path(folder, 0))
    for record in records:
        writer.append(record)
    writer.close()
    return folder


@pytest.fixture
def base(tmp_path) -> Path:
    return write(tmp_path / "base", BASE)


@pytest.fixture
def other(tmp_path) -> Path:
    return write(tmp_path / "other", OTHER[::-1], sigma=0.3)


def coverage_by_hand(record: Record, k: int) -> float:
    """1 - C(N - c, k) / C(N, k)."""
    n, right = len(record.rollouts), sum(rollout.correct for rollout in record.rollouts)
    return 1 - comb(n - right, k) / comb(n, k)


def mean_and_bounds(differences: list[float]) -> tuple[float, float, float]:
    mean = sum(differences) / len(differences)
    square = sum(value**2 for value in differences) / len(differences)
    low, high = difference_bounds([mean], [square], len(differences))
    return mean, float(low[0]), float(high[0])


def test_the_figures_of_each_run_are_those_of_its_own_report(base, other):
    compared = compare([base, other])
    assert [run.metrics for run in compared.runs] == [remake_metrics(base), remake_metrics(other)]
    assert [run.label for run in compared.runs] == ["sigma=0.5", "sigma=0.3"]
    assert compared.num_problems == 12 and compared.baseline_run.path == base


def test_differences_are_paired_whatever_the_order_of_the_records(base, other):
    """By hand: the second run's value minus the first's on each problem, then the mean with its interval."""
    run = compare([base, other]).runs[1]
    found = {one: run.differences[one] for one in (GREEDY, SINGLE, COVERAGE.at(2), of_search(BeamSearch(2, 2)))}
    by_hand = {
        GREEDY: [float(b.greedy.correct) - a.greedy.correct for a, b in zip(BASE, OTHER, strict=True)],
        SINGLE: [coverage_by_hand(b, 1) - coverage_by_hand(a, 1) for a, b in zip(BASE, OTHER, strict=True)],
        COVERAGE.at(2): [coverage_by_hand(b, 2) - coverage_by_hand(a, 2) for a, b in zip(BASE, OTHER, strict=True)],
        of_search(BeamSearch(2, 2)): [
            float(b.search[SEARCH.key].correct) - a.search[SEARCH.key].correct for a, b in zip(BASE, OTHER, strict=True)
        ],
    }
    for one, differences in by_hand.items():
        assert found[one] == pytest.approx(mean_and_bounds(differences)), one


def test_the_baseline_is_the_first_run_or_the_one_that_is_named(base, other):
    forth, back = compare([base, other]), compare([base, other], baseline=other)
    assert forth.runs[0].differences == {} and back.runs[1].differences == {}
    for one, there in forth.runs[1].differences.items():
        assert back.runs[0].differences[one].mean == pytest.approx(-there.mean)
    with pytest.raises(UserError, match="--baseline .*elsewhere is none of the runs compared"):
        compare([base, other], baseline=base.parent / "elsewhere")
    with pytest.raises(UserError, match="is given twice"):
        compare([base, other, base / ".." / "base"])


def test_runs_of_other_numbers_of_rollouts_meet_at_equal_and_at_full_budgets(base, tmp_path):
    """Of 8 rollouts against 4: coverage@4 at equal budgets, coverage@8 minus coverage@4 at the full ones."""
    records = [other_rollouts(record, 200 + i, 8) for i, record in enumerate(BASE)]
    run = compare([base, write(tmp_path / "more", records, num_rollouts=8)]).runs[1]
    pairs = list(zip(BASE, records, strict=True))
    equal = [coverage_by_hand(b, 4) - coverage_by_hand(a, 4) for a, b in pairs]
    full = [coverage_by_hand(b, 8) - coverage_by_hand(a, 4) for a, b in pairs]
    assert run.differences[COVERAGE.at(4)] == pytest.approx(mean_and_bounds(equal))
    assert run.full_differences["coverage"] == pytest.approx(mean_and_bounds(full))
    assert COVERAGE.at(8) not in run.differences
    assert of_aggregation(MajorityVoting(), 4) in run.differences and run.label == "N=8"


def test_other_problems_are_refused_unless_the_common_ones_are_asked_for(base, tmp_path):
    """Of 12 problems the other run lacks 0 and 1, has one of its own, and another gold answer for number 2."""
    changed = [replace(OTHER[2], gold=5.0), *OTHER[3:], make_record(99, searches=(SEARCH,))]
    other = write(tmp_path / "other", changed)
    said = r"base and other differ \(2 only in base, 1 only in other, 1 with another question or gold answer\): "
    with pytest.raises(UserError, match=said + "give --common to compare the 9 that all have"):
        compare([base, other])
    compared = compare([base, other], common=True)
    assert compared.num_problems == 9 and [run.num_left_out for run in compared.runs] == [3, 2]
    alone = remake_metrics(write(tmp_path / "alone", BASE[3:]))
    assert compared.runs[0].metrics == alone
    with pytest.raises(UserError, match="have no problem in common"):
        compare([base, write(tmp_path / "none", [make_record(77, searches=(SEARCH,))])], common=True)


def test_runs_that_are_judged_by_different_rules_are_refused(base, tmp_path):
    strict = write(tmp_path / "strict", OTHER, rule="strict")
    with pytest.raises(UserError, match=r"judged by different rules .*: give --answer_rule"):
        compare([base, strict])
    assert compare([base, strict], Reading(answer_rule="strict")).num_problems == 12


def test_curves_at_other_k_are_those_of_the_run_at_these_k(base):
    own, fewer = remake_metrics(base), remake_metrics(base, ks=[2])
    assert fewer["num_rollouts"] == 2 and fewer["evaluated"]["rollouts_drawn"] == 4
    assert fewer["coverage"] == {k: own["coverage"][k] for k in ("1", "2")}
    assert fewer["accuracy"]["majority_voting"] == {k: own["accuracy"]["majority_voting"][k] for k in ("1", "2")}
    assert "majority_voting" not in fewer["difference_to_majority_voting"]
    with pytest.raises(UserError, match="base: k = 8 is out of reach with 4 rollouts"):
        remake_metrics(base, ks=[8])


def test_the_rows_stand_by_strategy_and_coverage_comes_last(base, other):
    rows = list(compare([base, other]).rows())
    names = [row.result.strategy.name for row in rows]
    assert names[:2] == ["greedy", "greedy"] and names[-2:] == ["coverage", "coverage"]
    assert [row.run.name for row in rows] == ["base", "other"] * (len(rows) // 2)
    assert all((row.difference is None) == (row.run.name == "base") for row in rows)


def test_a_comparison_goes_through_json(base, other):
    content = json.loads(json.dumps(compare([base, other]).to_json()))
    assert content["baseline"] == "base" and [run["label"] for run in content["runs"]] == ["sigma=0.5", "sigma=0.3"]
    assert content["runs"][1]["full_differences"]["coverage"].keys() == {"mean", "interval"}


def test_names_take_as_much_of_the_path_as_tells_runs_apart(tmp_path):
    assert run_names([Path("a/x"), Path("b/y")]) == ["x", "y"]
    assert run_names([Path("s/a/x"), Path("s/b/x")]) == ["a/x", "b/x"]


# Commands -----------------------------------------------------------------------------------------------------------


def test_the_report_of_several_runs_prints_the_table_and_keeps_files_where_asked(
    base, other, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "noise"
    assert (
        main_guard(lambda: report([str(base), str(other), f"--out={out}", "--aggregations=[majority_voting, hybrid]"]))
        == 0
    )
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines()[:-2])) <= 80
    assert "sigma=0.5 @ 4" in shown and "12 problems, the same in every run" in shown
    assert json.loads((out / "comparison.json").read_text())["num_problems"] == 12
    text = (out / "report.md").read_text()
    pictures = [line.split("(")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert len(pictures) >= 5 and all((out / picture).stat().st_size > 0 for picture in pictures)
    page = (out / "report.html").read_text()
    assert page.count("<figure") == len(pictures) and 'id="comparison"' in page and "12 problems, the same" in page
    assert not (base / "report.md").exists() and not (other / "report.md").exists()


def test_a_control_that_loses_nothing_is_told_wherever_runs_are_compared(base, tmp_path, capsys):
    control, out = write(tmp_path / "zeros", BASE, control="zero"), tmp_path / "both"
    assert main_guard(lambda: report([str(base), str(control), f"--out={out}"])) == 0
    for text in (capsys.readouterr().out, *((out / name).read_text() for name in ("report.md", "report.html"))):
        assert "latents do not matter" in text and "To try" in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["{base}", "--common"], "compare several runs: name the others too"),
        (["{base}", "--ks", "1,x"], "--ks must be numbers of rollouts such as 1,2,4,8, got '1,x'"),
        (["{base}", "--ks", "0"], "k = 0 is out of reach with 4 rollouts"),
        (["{base}", "{base}/nowhere"], "holds no run.json: name the folder of an evaluation"),
        ([], "--help lists the options"),
    ],
)
def test_what_cannot_be_reported_is_one_sentence(base, capsys, words, sentence):
    assert main_guard(lambda: report([word.format(base=base) for word in words])) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


@pytest.fixture
def listed(base, other, tmp_path) -> Path:
    """Two runs of which one has its report, a training, an annotation, a broken run, and a folder that is none."""
    main_guard(lambda: report([str(base)]))
    write_run(
        tmp_path / "deep" / "training",
        {
            "settings": {"model.class_path": "lightning_modules.CoconutModule"},
            "state": "finished",
            "steps": 7,
            "ended": "2026-01-02T03:04:05+00:00",
            "best": {"metric": "val/accuracy", "value": 0.25},
        },
    )
    drawn = {"num_rollouts": 2, "num_continuations": 0, "data": '{"source": "train.jsonl"}'}
    described = {"backbone_kind": "codi", "sampler": {"name": "AdditiveGaussianNoise", "sigma": 2.0}}
    write_run(
        tmp_path / "annotated",
        {"settings": drawn | described, "num_problems": 8, "finished": "2026-01-03T03:04:05+00:00"},
    )
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    (tmp_path / "foreign").mkdir()
    return tmp_path


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_the_list_shows_every_run_and_names_what_is_strange(listed, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    capsys.readouterr()
    assert main_guard(lambda: list_runs([str(listed), "--sort=name"])) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = " ".join(" ".join(lines).split())
    for phrase in ("base", "sigma=0.3", "12 problems", "CoconutModule · 7 steps · val/accuracy 0.25", "not finished"):
        assert phrase in shown
    assert "annotation · codi · AdditiveGaussianNoise(sigma=2.0) · N = 2 · train.jsonl · 8 problems" in shown
    assert "annotated 2026-01-03 03:04 annotation" in shown
    assert max(len(line) for line in lines if str(listed) not in line) <= columns
    assert "broken: broken (" in shown and "foreign: no run" in shown


def test_the_list_has_the_figures_of_the_report_and_sorts(listed, capsys):
    capsys.readouterr()
    assert main_guard(lambda: list_runs([str(listed), "--json", "--sort=coverage"])) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"][0]["name"] == "base" and len(found["runs"]) == 4
    own = json.loads((listed / "base" / "metrics.json").read_text())
    first = found["runs"][0]
    assert first["coverage"]["value"] == own["coverage"]["4"] and first["num_problems"] == 12
    assert first["best"]["value"] == max(
        own["accuracy"]["greedy"], own["accuracy"]["single"], own["accuracy"]["majority_voting"]["4"],
        own["accuracy"]["best_of_n_mean"]["4"], own["accuracy"]["beam_search"]["2x2"],
    )  # fmt: skip


def test_a_list_of_nothing_is_refused_in_a_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main_guard(lambda: list_runs([])) == 2
    assert "neither results/ nor runs/" in capsys.readouterr().err
    assert main_guard(lambda: list_runs(["nowhere"])) == 2
    assert "There is no folder nowhere" in capsys.readouterr().err
