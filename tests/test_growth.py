"""A run that grows ends with the files of a fresh run of the larger size, to the byte, and draws only what is missing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from commands.evaluate import EvaluationCLI
from commands.guard import main_guard
from latent_tts.backbones import load_backbone
from latent_tts.engine.engine import RolloutEngine
from latent_tts.evaluation.growth import Place
from latent_tts.evaluation.latent_files import KeptLatents, LatentFiles, read_latents
from latent_tts.evaluation.prediction_files import RecordWriter
from latent_tts.reward import LatentRewardModel
from latent_tts.sampling import AdditiveGaussianNoise

pytestmark = pytest.mark.slow

SCORED = ["--model.search=[{name: beam_search, num_beams: 2, num_candidates: 2}]"]
RECORDS = "predictions/rank-00000.jsonl"


def evaluate(*args: str) -> int:
    return main_guard(lambda: EvaluationCLI(args).run())


@pytest.fixture(scope="module", autouse=True)
def without_figures():
    """Figures are no part of what is compared here, and take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("latent_tts.evaluation.report.files.figures", lambda *_: {})
        yield


@pytest.fixture(scope="module")
def reward_model(tiny_checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reward") / "rm"
    torch.manual_seed(0)
    LatentRewardModel.from_backbone(load_backbone(str(tiny_checkpoint))).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tiny_checkpoint, problem_file) -> list[str]:
    return [
        f"--model.backbone={tiny_checkpoint}",
        f"--data.source={problem_file}",
        "--data.limit=6",
        "--data.batch_size=3",
        "--model.max_answer_tokens=4",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]


def command(base: list[str], output: Path, num_rollouts: int, *more: str) -> list[str]:
    return [*base, f"--output={output}", f"--model.num_rollouts={num_rollouts}", *more]


def assert_same(output: Path, fresh: Path) -> None:
    """The same records to the byte, the same settings and metrics, and nothing left over."""
    assert (output / RECORDS).read_bytes() == (fresh / RECORDS).read_bytes()
    run, other = (json.loads((folder / "run.json").read_text()) for folder in (output, fresh))
    assert run["settings"] == other["settings"] and run["finished"]
    found, expected = (json.loads((folder / "metrics.json").read_text()) for folder in (output, fresh))
    del found["throughput"], expected["throughput"]
    assert found == expected
    assert not list(output.glob("growing-*"))


def latents_of(run: Path) -> dict[str, KeptLatents]:
    files = LatentFiles(run)
    return {one: files.read(one) for one in files.problem_ids}


@pytest.fixture(scope="module")
def everything(base, reward_model, tmp_path_factory) -> Path:
    """A fresh run of 6 rollouts with latents, scores and a search."""
    output = tmp_path_factory.mktemp("fresh")
    more = ["--model.keep_latents=true", f"--model.reward_model={reward_model}", *SCORED]
    assert evaluate(*command(base, output, 6, *more)) == 0
    return output


@pytest.fixture
def drawn(monkeypatch) -> list[tuple[int, int]]:
    """(number, first) of the rollouts that are drawn by sampling or greedily, call by call."""
    calls: list[tuple[int, int]] = []
    draw = RolloutEngine.rollout_from

    def spy(self, start, num_rollouts, first_rollout=0):
        calls.append((num_rollouts, first_rollout))
        return draw(self, start, num_rollouts, first_rollout)

    monkeypatch.setattr(RolloutEngine, "rollout_from", spy)
    return calls


@pytest.mark.parametrize("sampler", [[], ["--model.sampler=MonteCarloDropout", "--model.sampler.p=0.2"]])
def test_more_rollouts_are_those_of_a_fresh_run_and_no_other_is_drawn(base, tmp_path, drawn, sampler):
    grown, fresh = tmp_path / "grown", tmp_path / "fresh"
    assert evaluate(*command(base, fresh, 5, *sampler)) == 0
    assert evaluate(*command(base, grown, 2, *sampler)) == 0
    drawn.clear()
    assert evaluate(*command(base, grown, 5, *sampler)) == 0
    assert drawn == [(3, 2), (3, 2)]  # two batches, rollouts 2 to 4; no greedy answer
    assert_same(grown, fresh)


@pytest.mark.parametrize("keep", [True, False])
def test_scores_and_a_search_are_added_without_drawing_again(base, reward_model, everything, tmp_path, drawn, keep):
    """With kept latents nothing is thought again either; latents that were not kept are thought again and then kept."""
    kept = ["--model.keep_latents=true"]
    assert evaluate(*command(base, tmp_path, 6, *(kept if keep else []))) == 0
    drawn.clear()
    assert evaluate(*command(base, tmp_path, 6, *kept, f"--model.reward_model={reward_model}", *SCORED)) == 0
    assert not drawn
    assert_same(tmp_path, everything)
    expected = latents_of(everything)
    for one, found in latents_of(tmp_path).items():
        assert torch.equal(found.latents, expected[one].latents)


def test_everything_at_once_from_a_smaller_run_of_fewer_problems(base, reward_model, everything, tmp_path):
    more = ["--model.keep_latents=true", f"--model.reward_model={reward_model}", *SCORED]
    assert evaluate(*command(base, tmp_path, 2, "--data.limit=3")) == 0
    assert evaluate(*command(base, tmp_path, 4, "--data.limit=6", "--model.keep_latents=true")) == 0
    assert evaluate(*command(base, tmp_path, 6, "--data.limit=6", *more)) == 0
    assert_same(tmp_path, everything)
    expected, found = latents_of(everything), latents_of(tmp_path)
    assert found.keys() == expected.keys() and len(found) == 6
    assert all(torch.equal(found[one].latents, expected[one].latents) for one in found)


def test_kept_latents_are_those_of_the_engine(base, everything, tiny_checkpoint):
    backbone = load_backbone(str(tiny_checkpoint)).freeze()
    engine = RolloutEngine(backbone, AdditiveGaussianNoise(sigma=0.5), max_answer_tokens=4)
    for line in (everything / RECORDS).read_text().splitlines():
        record = json.loads(line)
        rollouts = engine.rollout([record["question"]], 6, 0, [record["problem_id"]])
        kept = read_latents(everything, record["problem_id"])
        assert kept.latents.shape == (6, 3, 32)
        torch.testing.assert_close(kept.latents, rollouts.latents[0].float(), rtol=1e-4, atol=1e-5)
        assert kept.num_latents.tolist() == [rollout["num_latents"] for rollout in record["rollouts"]]


class KilledError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("survivors", [0, 4])
def test_killed_while_growing_the_smaller_run_is_whole_and_the_same_command_goes_on(
    base, reward_model, everything, tmp_path, monkeypatch, survivors
):
    more = ["--model.keep_latents=true", f"--model.reward_model={reward_model}", *SCORED]
    assert evaluate(*command(base, tmp_path, 3, "--model.keep_latents=true")) == 0
    before = (tmp_path / RECORDS).read_bytes(), (tmp_path / "run.json").read_bytes()
    append, left = RecordWriter.append, iter([True] * survivors)

    def dying(self, record):
        if not next(left, False):
            raise KilledError
        append(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "append", dying)
        with pytest.raises(KilledError):
            evaluate(*command(base, tmp_path, 6, *more))
    assert before == ((tmp_path / RECORDS).read_bytes(), (tmp_path / "run.json").read_bytes())
    assert evaluate(*command(base, tmp_path, 6, *more)) == 0
    assert_same(tmp_path, everything)
    expected = latents_of(everything)
    assert all(torch.equal(found.latents, expected[one].latents) for one, found in latents_of(tmp_path).items())


@pytest.fixture(scope="module")
def three_of_two(base, tmp_path_factory) -> Path:
    """A fresh run of 3 rollouts of 2 problems."""
    output = tmp_path_factory.mktemp("three")
    assert evaluate(*command(base, output, 3, "--data.limit=2")) == 0
    return output


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_killed_while_larger_records_take_their_place_the_same_command_goes_on(
    base, three_of_two, tmp_path, monkeypatch, renames
):
    """Before the smaller records are put aside, between that and the larger ones' coming, and before run.json says so."""
    assert evaluate(*command(base, tmp_path, 2, "--data.limit=2")) == 0
    settle, replace, left = Place.settle, os.replace, iter([True] * renames)

    def settling(place: Place) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("latent_tts.evaluation.growth.os.replace", dying)
            settle(place)
        raise KilledError

    def dying(old: Path, new: Path) -> None:
        if not next(left, False):
            raise KilledError
        replace(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(Place, "settle", settling)
        with pytest.raises(KilledError):
            evaluate(*command(base, tmp_path, 3, "--data.limit=2"))
    assert (tmp_path / "predictions").is_dir() == (renames != 1)
    assert evaluate(*command(base, tmp_path, 3, "--data.limit=2")) == 0
    assert_same(tmp_path, three_of_two)


def test_what_may_not_grow_is_refused_by_name_and_nothing_is_touched(base, everything, reward_model, capsys):
    before = {path: path.stat().st_mtime_ns for path in everything.rglob("*")}
    kept = ["--model.keep_latents=true", f"--model.reward_model={reward_model}"]
    refusals = {
        "model.num_rollouts was 6 and is 4 now": command(base, everything, 4, *kept, *SCORED),
        "model.search was": command(base, everything, 6, *kept),
        "model.keep_latents was true and is null now": command(base, everything, 6, kept[1], *SCORED),
        "model.reward_model.fingerprint was": command(base, everything, 6, kept[0], "--model.aggregations=null"),
        "model.sampler.sigma was 0.5 and is 0.25 now": command(
            base, everything, 8, *kept, *SCORED, "--model.sampler.sigma=0.25"
        ),
    }
    for phrase, words in refusals.items():
        assert evaluate(*words) == 2
        error = capsys.readouterr().err
        assert phrase in error and error.count("\n") == 1, error
        if "is 4 now" in phrase:
            assert f"evaluate.py report {everything} --ks 4" in error
    assert before == {path: path.stat().st_mtime_ns for path in everything.rglob("*")}


def test_latents_that_a_kill_left_without_a_record_are_cut_out(everything, tmp_path):
    """Of three problems one lost its record and one has fewer rollouts than latents; the third stays as it was."""
    shutil.copytree(everything / "latents", tmp_path / "latents")
    files = LatentFiles(tmp_path)
    gone, smaller, *others = files.problem_ids
    extra = files.read(smaller)
    files.add(0, {smaller: KeptLatents(extra.latents.repeat(2, 1, 1), extra.num_latents.repeat(2))})
    assert LatentFiles(tmp_path).num_rollouts(smaller) == 12
    LatentFiles(tmp_path).cut_to({one: 6 for one in (smaller, *others)})
    left = LatentFiles(tmp_path)
    assert gone not in left and left.num_rollouts(smaller) == 6
    assert all(torch.equal(left.read(one).latents, read_latents(everything, one).latents) for one in (smaller, *others))
