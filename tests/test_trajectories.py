"""Trajectories in a plane: projections beside a decomposition by numpy, right and wrong told apart, rollouts as recorded."""

from __future__ import annotations

import importlib.util
import shutil

import numpy as np
import pytest
import torch

from commands.guard import main_guard
from commands.trajectories import main as trajectories
from commands.trajectories import redrawn
from latent_tts.errors import UserError
from latent_tts.evaluation.latent_files import KeptLatents, LatentFiles
from latent_tts.evaluation.remake import ReadRun
from latent_tts.evaluation.report.figures.trajectories import Trajectories, project, trajectories_figure
from tests.geometry import faults


def make_run(label: str, num_rollouts: int = 6, num_steps: int = 4, seed: int = 0, right: float = 0.5) -> Trajectories:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(num_rollouts, num_steps, 8, generator=generator) * torch.tensor([5.0, 3, *[0.5] * 6])
    lengths = torch.randint(1, num_steps + 1, (num_rollouts,), generator=generator)
    return Trajectories(label, latents, lengths, [i < right * num_rollouts for i in range(num_rollouts)])


def test_all_runs_share_the_plane_of_largest_variance():
    """By numpy's singular values of all latents that exist, up to the sign of an axis."""
    runs = [make_run("a"), make_run("b", 3, seed=1)]
    rows = np.concatenate(
        [run.latents[n, : run.num_latents[n]].double().numpy() for run in runs for n in range(len(run.correct))]
    )
    _, values, directions = np.linalg.svd(rows - rows.mean(0))
    expected = (rows - rows.mean(0)) @ directions[:2].T
    plane = project(runs)
    found = np.concatenate([points[~np.isnan(points[..., 0])] for points in plane.points])
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-8)
    share = 100 * values[0] ** 2 / (values**2).sum()
    assert f"({share:.0f} % of the variance)" in plane.axes[0]
    # steps that a rollout has not are nowhere
    for run, points in zip(runs, plane.points, strict=True):
        assert np.isnan(points[..., 0]).tolist() == (~run.mask).tolist()


def test_a_plane_is_the_same_every_time_whatever_the_sign_of_a_decomposition():
    run = make_run("a")
    np.testing.assert_array_equal(project([run]).points[0], project([run]).points[0])


@pytest.mark.parametrize("num_rollouts", [2, 16, 1024])
@pytest.mark.parametrize(("num_runs", "right"), [(1, 0.0), (4, 0.5), (2, 1.0)])
def test_nothing_is_cut_and_nothing_is_covered(num_rollouts, num_runs, right):
    runs = [make_run(f"MonteCarloDropout, p=0.{i}, sites=residual", num_rollouts, 2, i, right) for i in range(num_runs)]
    figure = trajectories_figure(runs, "How many? " * 60)
    assert len(figure.axes) == num_runs and faults(figure) == []


def test_right_and_wrong_differ_by_line_and_mark_and_all_rollouts_are_drawn():
    axes = trajectories_figure([make_run("a")], "How many?").axes[0]
    marks = {str(line.get_marker()): np.size(line.get_xdata()) for line in axes.lines}
    assert (marks["o"], marks["X"], marks["."]) == (3, 3, 6)
    lines = [line for line in axes.lines if line.get_marker() == "None"]
    assert len({str(line.get_linestyle()) for line in lines}) == 2
    drawn = sum(int(np.isfinite(np.asarray(line.get_xdata(), dtype=float)).sum()) for line in lines)
    assert drawn == int(make_run("a").num_latents.sum())
    assert axes.get_title().endswith("3 of 6 right")


def test_what_has_no_plane_is_refused_in_a_sentence():
    wide = Trajectories("wide", torch.zeros(2, 2, 9), torch.tensor([2, 2]), [True, False])
    with pytest.raises(UserError, match="different widths"):
        project([make_run("a"), wide])
    with pytest.raises(UserError, match="fewer than three"):
        project([Trajectories("one", torch.zeros(1, 1, 3), torch.tensor([1]), [True])])
    with pytest.raises(UserError, match="not finite"):
        project([Trajectories("nan", torch.full((2, 2, 3), torch.nan), torch.tensor([2, 2]), [True, False])])
    if importlib.util.find_spec("sklearn") is None:
        with pytest.raises(UserError, match="scikit-learn"):
            project([make_run("a")], "tsne")


def test_tsne_places_every_latent():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    points = project([make_run("a", 12)], "tsne").points[0]
    assert np.isfinite(points[make_run("a", 12).mask.numpy()]).all()


def assert_kept_latents_draw_the_same(run, out, monkeypatch):
    """Where the run keeps the latents, no model is loaded."""
    before, record = out.read_bytes(), next(iter(ReadRun(run).records()))
    drawn = redrawn(run, record, "")
    LatentFiles(run).add(0, {record.problem_id: KeptLatents(drawn.latents, drawn.num_latents)})
    with monkeypatch.context() as patch:
        patch.setattr("commands.trajectories.redrawn", None)
        assert main_guard(lambda: trajectories([str(run), "--problem", "1", "--out", str(out)])) == 0
    assert out.read_bytes() == before
    shutil.rmtree(run / "latents")


@pytest.mark.slow
def test_the_command_draws_what_was_recorded_and_refuses_what_was_not(drawn_figures, tmp_path, monkeypatch, capsys):
    from commands.evaluate import EvaluationCLI

    small = ["--data.size=2", "--model.num_rollouts=4", "--model.search=[]", "--trainer.enable_progress_bar=false"]
    run, out = tmp_path / "run", tmp_path / "out.svg"
    EvaluationCLI([*small, f"--output={run}"]).run()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main_guard(lambda: trajectories([str(run), "--problem", "1", "--out", str(out)])) == 0
    assert out.read_bytes().startswith(b"<?xml") and "4 rollouts of problem" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert main_guard(lambda: trajectories([str(run), "--problem", "1", "--out", "x.txt"])) == 2
    assert "must end in .png" in capsys.readouterr().err
    assert_kept_latents_draw_the_same(run, out, monkeypatch)
    records = next((run / "predictions").glob("*.jsonl"))
    records.write_text(records.read_text().replace('"text": "', '"text": "other '))
    assert main_guard(lambda: trajectories([str(run), "--problem", "1", "--out", str(out)])) == 2
    assert "do not come out as" in capsys.readouterr().err
