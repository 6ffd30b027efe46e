"""Reports from records alone: the metrics of the run, and those of other aggregations and of another answer rule."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commands.guard import main_guard
from commands.report import main as report
from latent_tts.aggregation import AGGREGATIONS, BestOfN, MajorityVoting
from latent_tts.errors import UserError
from latent_tts.evaluation.prediction_files import RecordWriter, prediction_path
from latent_tts.evaluation.problem_values import choose
from latent_tts.evaluation.records import Record
from latent_tts.evaluation.remake import remake_metrics
from latent_tts.evaluation.run_folder import write_run
from latent_tts.evaluation.strategies import Part, of_search, part_of
from latent_tts.evaluation.summary import EvaluationMetrics
from latent_tts.search import BeamSearch
from tests.records import SEARCH, make_record

DRAWN = [make_record(seed, searches=(SEARCH,)) for seed in range(9)]
RECORDS = [replace(record, chosen=choose(record, [BestOfN("mean"), MajorityVoting()])) for record in DRAWN]
EVALUATED = {
    "backbone": {"name": "tiny", "fingerprint": "ab", "kind": "coconut", "num_latents": 3},
    "reward_model": {"name": "tiny-rm", "fingerprint": "cd"},
    "written": None,
    "sampler": {"name": "AdditiveGaussianNoise", "sigma": 0.5},
    "seed": 0,
    "answer_rule": "tolerance",
}


@pytest.fixture
def run(tmp_path) -> Path:
    """A folder with the records of two ranks, as an evaluation that was killed leaves it."""
    settings = {
        "model.aggregations": [part_of(BestOfN("mean")), part_of(MajorityVoting())],
        "model.search": [part_of(BeamSearch(2, 2))],
        "model.num_rollouts": 4,
        "model.num_latents": 3,
        "model.answer_rule": "tolerance",
        "model.reward_model.fingerprint": "cd",
        "data.source": "f.jsonl",
    }
    write_run(tmp_path, {"settings": settings, "evaluated": EVALUATED})
    for rank in range(2):
        writer = RecordWriter(prediction_path(tmp_path, rank))
        for record in RECORDS[rank::2]:
            writer.append(record)
        writer.close()
    return tmp_path


def counted(aggregations, records=RECORDS) -> dict[str, Any]:
    metrics = EvaluationMetrics(4, 3, aggregations, [of_search(BeamSearch(2, 2))])
    for record in records:
        metrics.update(record)
    return metrics.compute()


def shared(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return all(found[key] == value for key, value in expected.items() if key != "problems_fingerprint")


def test_the_metrics_of_a_run_follow_from_its_records(run):
    found = remake_metrics(run)
    assert shared(found, counted([BestOfN("mean"), MajorityVoting()]))
    assert found["evaluated"]["data"]["source"] == "f.jsonl"
    assert found["evaluated"]["data"]["fingerprint"] == counted([])["problems_fingerprint"]


def test_other_aggregations_need_no_new_rollouts(run):
    parts: list[Part] = ["majority_voting", "weighted_voting", {"name": "hybrid", "keep": 0.25}]
    made = [MajorityVoting(), AGGREGATIONS["weighted_voting"](), AGGREGATIONS["hybrid"](keep=0.25)]  # type: ignore[call-arg]
    assert shared(remake_metrics(run, parts), counted(made))
    with pytest.raises(UserError, match="knows no 'median'"):
        remake_metrics(run, ["median"])


def test_another_answer_rule_judges_every_answer_anew(run):
    """An answer that differs from the gold one in the tenth digit is right by value and wrong as a float."""
    near = [replace(r, rollouts=tuple(replace(x, answer=1 + 1e-10, correct=True) for x in r.rollouts)) for r in RECORDS]
    for rank in range(2):
        prediction_path(run, rank).unlink()
    writer = RecordWriter(prediction_path(run, 0))
    for record in near:
        writer.append(record)
    writer.close()
    assert remake_metrics(run)["coverage"]["4"] == 1.0
    assert remake_metrics(run, answer_rule="strict")["coverage"]["4"] == 0.0


def test_what_is_no_run_is_refused(tmp_path, run):
    with pytest.raises(UserError, match=r"holds no run.json: name the folder of an evaluation"):
        remake_metrics(tmp_path / "nowhere")
    for rank in range(2):
        prediction_path(run, rank).unlink()
    with pytest.raises(UserError, match="holds no record yet"):
        remake_metrics(run)


def test_the_command_writes_the_runs_own_report_and_no_other_over_it(run, tmp_path, capsys, monkeypatch):
    """Every record is read once for all that is made of them."""
    read: list[str] = []
    from_json = Record.from_json
    monkeypatch.setattr(Record, "from_json", lambda line: read.append(line["problem_id"]) or from_json(line))
    assert main_guard(lambda: report([str(run)])) == 0
    assert sorted(read) == sorted(record.problem_id for record in RECORDS)
    own = (run / "metrics.json").read_text()
    assert json.loads(own) == remake_metrics(run) and (run / "report.md").exists()
    assert "best-of-N @ 4" in capsys.readouterr().out
    assert main_guard(lambda: report([str(run), "--aggregations", "[hybrid]"])) == 0
    assert "give --out FOLDER" in capsys.readouterr().out and (run / "metrics.json").read_text() == own
    other = tmp_path / "other"
    assert main_guard(lambda: report([str(run), "--aggregations", "[hybrid]", "--out", str(other)])) == 0
    assert set(json.loads((other / "metrics.json").read_text())["accuracy"]) >= {"hybrid"}
    assert (run / "metrics.json").read_text() == own


@pytest.mark.parametrize("text", ["hybrid", "{a: b}", "[1]", "[", "3"])
def test_aggregations_that_are_no_list_are_refused_in_a_sentence(run, text, capsys):
    assert main_guard(lambda: report([str(run), f"--aggregations={text}"])) == 2
    error = capsys.readouterr().err
    assert "--aggregations must be a list" in error and error.count("\n") == 1
