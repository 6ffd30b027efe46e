"""The study: every run of every file is an evaluation whose options are known, and a killed study goes on by the same command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from commands.study import main, read_study
from datamodules.rollout_data import RolloutDataModule
from latent_tts.errors import UserError
from latent_tts.evaluation.strategies import make_aggregations, make_searches
from lightning_modules.parallel_tts_module import ParallelTTSModule
from tests.test_comparison import BASE, OTHER, write

ROOT = Path(__file__).resolve().parents[1]
STUDIES = [path for folder in ("study", "published") for path in sorted((ROOT / "configs" / folder).glob("*-*.yaml"))]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_run_is_an_evaluation_with_options_that_exist(path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--output", type=str)
    parser.add_class_arguments(ParallelTTSModule, "model")  # an option of a sampler that it has not is an error
    parser.add_class_arguments(RolloutDataModule, "data")
    steps = read_study(path)
    assert len({tuple(step.words) for step in steps}) == len({step.output for step in steps}) == len(steps)
    for step in steps:
        if not step.is_evaluation:
            continue
        given = [word.replace("--config=", f"--config={ROOT}/") for word in step.words[1:]]
        options = parser.parse_args(given)
        scored = options.model.reward_model is not None
        make_aggregations(options.model.aggregations, scored)
        make_searches(options.model.search or [], scored)


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text("config: base.yaml\noptions: {a.b: [x, 1]}\nruns: {one: {c: true}, two: {a.b: null}}\n")
    return path


def test_options_of_a_run_win_over_those_of_the_study(study, tmp_path):
    one, two = read_study(study, tmp_path)
    assert one.words == [
        "evaluate.py",
        "--config=base.yaml",
        '--a.b=["x", 1]',
        "--c=true",
        f"--output={tmp_path}/small/one",
    ]
    assert two.words == ["evaluate.py", "--config=base.yaml", "--a.b=null", f"--output={tmp_path}/small/two"]


def test_metrics_are_kept_run_by_run_and_a_run_that_fails_ends_the_study(study, tmp_path, monkeypatch):
    """The second run is killed at first; by the same command every run is called again, and evaluate.py knows what is done."""
    results, kept, codes, called = tmp_path / "results", tmp_path / "kept", {"two": 143}, []

    def run(name, words):
        output = Path(words[-1].removeprefix("--output="))
        called.append(output.name)
        output.mkdir(parents=True, exist_ok=True)
        (output / "metrics.json").write_text(output.name)
        if name in codes:
            raise UserError(f"ended with {codes[name]}")

    monkeypatch.setattr("commands.study.run_python", run)
    monkeypatch.setattr("commands.study._keep_comparison", lambda outputs, kept: None)
    with pytest.raises(UserError, match="ended with 143"):
        main(study, results=results, kept=kept)
    assert [path.name for path in (kept / "small").iterdir()] == ["one.json"]
    codes.clear()
    main(study, results=results, kept=kept)
    assert called == ["one", "two"] * 2
    assert {path.name: path.read_text() for path in (kept / "small").iterdir()} == {
        "one.json": "one",
        "two.json": "two",
    }
    main(study, only=["two"], results=results, kept=kept)
    main(study, results=results, kept=kept, dry_run=True)
    assert called == ["one", "two"] * 2 + ["two"]


def test_parts_are_done_in_their_order_each_with_its_command_and_its_folder(study, tmp_path):
    study.write_text(
        "evaluations: {config: [a.yaml, b.yaml], options: {m.r: '{folder}/head/model'}, runs: {own: {}}}\n"
        "trainings: {config: t.yaml, options: {}, runs: {head: {config: u.yaml, d.folder: '{folder}/notes'}}}\n"
        "annotations: {config: n.yaml, options: null, runs: {notes: {}}}\n"
    )
    folder = tmp_path / "small"
    assert [step.words for step in read_study(study, tmp_path)] == [
        ["evaluate.py", "annotate", "--config=n.yaml", f"--output={folder}/notes"],
        ["train.py", "fit", "--config=u.yaml", f"--d.folder={folder}/notes", f"--output={folder}/head"],
        ["evaluate.py", "--config=a.yaml", "--config=b.yaml", f"--m.r={folder}/head/model", f"--output={folder}/own"],
    ]


def test_what_a_training_measured_is_kept_without_the_machine_it_ran_on(study, tmp_path):
    study.write_text("trainings: {config: t.yaml, options: {}, runs: {head: {}}}")
    output = tmp_path / "small" / "head"
    output.mkdir(parents=True)
    described = {"state": "finished", "best": {"metric": "m", "value": 1}, "command": "x", "python": "y"}
    (output / "run.json").write_text(json.dumps(described))
    main(study, results=tmp_path, kept=tmp_path / "kept", keep_only=True)
    kept = json.loads((tmp_path / "kept" / "small" / "head.json").read_text())
    assert kept == {"state": "finished", "best": {"metric": "m", "value": 1}}


def test_the_differences_of_runs_are_kept_without_their_metrics_and_places(study, tmp_path):
    results, no_speed = tmp_path / "results", json.dumps({"throughput": {"rollouts_per_second": None}})
    for folder, records in (("one", BASE), ("two", OTHER)):
        (write(results / "small" / folder, records) / "metrics.json").write_text(no_speed)
    main(study, results=results, kept=tmp_path / "kept", keep_only=True)
    kept = json.loads((tmp_path / "kept" / "small" / "comparison.json").read_text())
    assert kept["num_problems"] == len(BASE) and [run["name"] for run in kept["runs"]] == ["one", "two"]
    assert kept["runs"][1]["full_differences"]["coverage"].keys() == {"mean", "interval"}
    assert kept["runs"][0]["problems"]["num_problems"] == len(BASE)
    assert all(set(run) & {"metrics", "path"} == set() for run in kept["runs"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("evaluations: {config: a, options: {}, runs: {comparison: {}}}", "that its comparison takes"),
        (
            "trainings: {config: a, options: {}, runs: {x: {}}}\nevaluations: {config: a, options: {}, runs: {x: {}}}",
            "'x'",
        ),
        ("runs: {one: {}}", "is no study: it has to hold config, options, runs"),
        ("config: a\noptions: {}\nruns: {}", "at least one run"),
        ("a: [", "no study that can be read"),
    ],
)
def test_what_is_no_study_is_refused(text, message, study):
    study.write_text(text)
    with pytest.raises(UserError, match=message):
        read_study(study)


def test_unknown_runs_and_missing_files_are_refused(study, tmp_path):
    with pytest.raises(UserError, match="has no run 'three'; there are: one, two"):
        main(study, only=["three"], results=tmp_path)
    with pytest.raises(UserError, match="no study that can be read"):
        read_study(tmp_path / "nothing.yaml")
