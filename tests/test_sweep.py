"""A sweep: every combination once, each an evaluation of its own; nothing runs where one of them is wrong."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from commands import evaluations, sweep
from commands.evaluations import run_evaluation
from commands.sweep import Varied, main, sweep_points
from latent_tts.errors import UserError


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a.b=0.3,0.5", (0.3, 0.5)),
        ("--a.b=x", ("x",)),
        ("a.b=null,checkpoints/tiny", (None, "checkpoints/tiny")),
        ("a.b=[[beam_search], []]", (["beam_search"], [])),
        ("a.b=[{name: best_of_n}, majority_voting]", ({"name": "best_of_n"}, "majority_voting")),
    ],
)
def test_values_are_read_as_a_configuration_reads_them(text, values):
    assert Varied.read(text) == Varied("a.b", values)


def test_points_are_all_combinations_with_the_last_option_varying_fastest(tmp_path):
    points = sweep_points([Varied("model.seed", (0, 1)), Varied("data.seed", (5, 6))], ["--config=x.yaml"], tmp_path)
    assert [point.name for point in points] == [
        f"model.seed={a},data.seed={b}" for a in (0, 1) for b in (5, 6)
    ]  # the shortest ends of the options' names that tell them apart
    assert points[1].arguments == (
        "--config=x.yaml",
        "--model.seed=0",
        "--data.seed=6",
        f"--output={tmp_path}/model.seed=0,data.seed=6",
    )


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--vary=sigma"], "OPTION=VALUE,VALUE"),
        (["--vary=a.b="], "OPTION=VALUE,VALUE"),
        (["--vary=a.b=1,1"], "a value twice"),
        (["--vary=a.b=1", "--vary=a.b=2"], "the same option"),
        (["--vary=model.seed=1,2", "--model.seed=3"], "leave one of the two out"),
        (["--vary=model.search=[a/b, a-b]"], "the same folder name"),
        (["--vary=model.sampler.sigma=0.5,x"], "sigma must be float, got x"),
        (["--vary=model.sede=1,2"], "no option --model.sede"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_runs(args, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "run_evaluation", lambda *_: pytest.fail("an evaluation has begun"))
    base = ["--model.backbone=checkpoints/tiny-coconut", "--model.sampler=AdditiveGaussianNoise"]
    with pytest.raises(UserError, match=sentence):
        main([*args, *base, f"--output={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_one_of_several_processes_does_not_sweep(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="start it once"):
        main(["--vary=model.seed=0,1", f"--output={tmp_path}"])


def test_points_on_the_same_problems_are_compared(tmp_path, monkeypatch):
    compared, run = [], []
    monkeypatch.setattr(sweep, "run_evaluation", lambda name, arguments: run.append(name))
    monkeypatch.setattr(sweep, "check_points", lambda points: None)
    monkeypatch.setattr(sweep, "report_runs", lambda runs, out: compared.append(([r.name for r in runs], out.name)))
    main(["--vary=data.source=a,b", "--vary=model.seed=0,1", f"--output={tmp_path / 'x'}"])
    assert run == [f"source={s},seed={n}" for s in "ab" for n in (0, 1)]
    assert compared == [([f"source={s},seed={n}" for n in (0, 1)], f"comparison,source={s}") for s in "ab"]
    compared.clear()
    main(["--vary=model.seed=0,1", f"--output={tmp_path / 'x'}"])
    assert compared == [(["seed=0", "seed=1"], "x")]


@pytest.mark.slow
def test_a_sweep_of_a_shipped_model_fills_a_folder_a_point_and_compares_them(tmp_path, capfd):
    """Two noises, four problems: the second call finds both runs done."""
    args = ["--vary=model.sampler.sigma=0.5,1", "--config=configs/evaluate/demo/tiny-codi.yaml", "--data.size=4"]
    args += [
        "--model.num_rollouts=2",
        "--model.reward_model=null",
        "--model.search=[]",
        "--model.sampler=AdditiveGaussianNoise",
    ]
    args += ["--model.aggregations=null", "--trainer.enable_progress_bar=false", f"--output={tmp_path}"]
    main(args)
    runs = [tmp_path / "sigma=0.5", tmp_path / "sigma=1"]
    before = [(run / "predictions" / "rank-00000.jsonl").read_bytes() for run in runs]
    assert all(before) and (tmp_path / "comparison.json").exists()
    assert "sigma=1" in capfd.readouterr().out
    main([*args, "--dry_run"])
    assert [(run / "predictions" / "rank-00000.jsonl").read_bytes() for run in runs] == before


@pytest.mark.slow
def test_a_signal_is_handed_on_to_the_evaluation(tmp_path, monkeypatch):
    """A stand-in for evaluate.py notes the signal; the sweep's process is a child, so that this one is left alone."""
    script = tmp_path / "evaluate.py"
    script.write_text(
        "import pathlib, signal, sys, time\n"
        "def note(number, frame):\n    pathlib.Path(sys.argv[1]).write_text(str(number)); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, note)\nprint('ready', flush=True)\ntime.sleep(60)\n"
    )
    code = (
        "import sys, pathlib; from commands import evaluations; from commands.guard import main_guard\n"
        f"evaluations.ROOT = pathlib.Path({str(tmp_path)!r})\n"
        f"sys.exit(main_guard(lambda: evaluations.run_evaluation('one', [{str(tmp_path / 'noted')!r}])))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and "the same command goes on" in said
    assert (tmp_path / "noted").read_text() == str(int(signal.SIGTERM))


def test_an_evaluation_that_fails_ends_the_sweep(tmp_path, monkeypatch):
    script = tmp_path / "evaluate.py"
    script.write_text("raise SystemExit(3)")
    monkeypatch.setattr(evaluations, "ROOT", tmp_path)
    with pytest.raises(UserError, match="The run one ended with exit code 3; the same command goes on with it"):
        run_evaluation("one", [])
