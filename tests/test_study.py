"""The study: every run of every file is an evaluation whose options are known, and a killed study goes on by the same command."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from commands.study import main, read_study
from datamodules.rollout_data import RolloutDataModule
from latent_tts.errors import UserError
from latent_tts.evaluation.strategies import make_aggregations, make_searches
from lightning_modules.parallel_tts_module import ParallelTTSModule

ROOT = Path(__file__).resolve().parents[1]
STUDIES = sorted((ROOT / "configs" / "study").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_run_is_an_evaluation_with_options_that_exist(path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--output", type=str)
    parser.add_class_arguments(ParallelTTSModule, "model")  # an option of a sampler that it has not is an error
    parser.add_class_arguments(RolloutDataModule, "data")
    runs = read_study(path)
    assert len({tuple(run.arguments) for run in runs}) == len({run.output for run in runs}) == len(runs)
    for run in runs:
        base = f"--config={ROOT / run.arguments[0].removeprefix('--config=')}"
        options = parser.parse_args([base, *run.arguments[1:]])
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
    assert one.arguments == ["--config=base.yaml", '--a.b=["x", 1]', "--c=true", f"--output={tmp_path}/small/one"]
    assert two.arguments == ["--config=base.yaml", "--a.b=null", f"--output={tmp_path}/small/two"]


def test_metrics_are_kept_run_by_run_and_a_run_that_fails_ends_the_study(study, tmp_path, monkeypatch):
    """The second run is killed at first; by the same command every run is called again, and evaluate.py knows what is done."""
    results, kept, codes, called = tmp_path / "results", tmp_path / "kept", {"two": 143}, []

    def evaluate(name, arguments):
        output = Path(arguments[-1].removeprefix("--output="))
        called.append(output.name)
        output.mkdir(parents=True, exist_ok=True)
        (output / "metrics.json").write_text(output.name)
        if name in codes:
            raise UserError(f"ended with {codes[name]}")

    monkeypatch.setattr("commands.study.run_evaluation", evaluate)
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
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
