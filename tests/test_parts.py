"""Parts of one size: where a library's sums depend on the shapes of products, a rollout still depends on nothing beside it.

The library is pretended (`tests/shapes.py`), so that the tests can fail on every machine; without the option they do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from commands.evaluate import EvaluationCLI
from commands.guard import main_guard
from latent_tts import solve
from latent_tts.acceleration.kernels.library import kernels
from latent_tts.backbones import LatentBackbone, load_backbone
from latent_tts.engine.engine import RolloutEngine
from latent_tts.engine.rollouts import Rollouts
from latent_tts.engine.state import ThoughtState
from latent_tts.errors import UserError
from latent_tts.evaluation.controls import LatentControl, other_problems
from latent_tts.evaluation.evaluator import Evaluator
from latent_tts.evaluation.prediction_files import RecordWriter
from latent_tts.evaluation.records import Record
from latent_tts.problems import Problem
from latent_tts.reward import LatentRewardModel
from latent_tts.sampling import AdditiveGaussianNoise, AnswerSampler, Deterministic, MonteCarloDropout
from latent_tts.search import AdaptiveRollouts, BeamSearch, ParticleFiltering
from tests.shapes import NO_KERNELS, ShapedProducts
from tests.test_resume import KilledError, dying_after
from tests.test_rollout import SAMPLERS, crossed, same

ROOT = Path(__file__).parent.parent
NOISE = AdditiveGaussianNoise(sigma=0.4)
DRAWN = ["agn", "dropout-latent", "dropout-prompt", "dropout-answer", "values-answer"]
SEARCHERS: list[Any] = [BeamSearch(2, 3), ParticleFiltering(4, temperature=0.2), AdaptiveRollouts(max_rollouts=9)]
PART = 4


@pytest.fixture
def shaped_products(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(NO_KERNELS, lambda: None)
    with ShapedProducts():
        yield


@pytest.fixture
def problems(questions) -> list[Problem]:
    return [Problem(f"id-{i}", question, float(i)) for i, question in enumerate(questions)]


def stopping_early(backbone: LatentBackbone, question: str) -> LatentBackbone:
    """The backbone; a CoLaR with another end of thought, which some of a question's rollouts come to before the others."""
    if backbone.dynamic:
        engine = RolloutEngine(backbone, NOISE, max_answer_tokens=6)
        state = engine.expand(engine.start([question]), 12)
        with torch.inference_mode():
            hidden = engine._advance(state).hidden
            assert hidden is not None
            backbone.end_of_thought_id = int(backbone.most_likely(hidden).mode().values)
        assert len(engine.rollout([question], 12).num_latents.unique()) > 1
    return backbone


def bits(rollouts: Rollouts, scores: Tensor, number: int) -> list[Any]:
    """What the first rollouts of one problem are, with their scores, to the bit."""
    some = rollouts.between(0, number)
    return [some.latents.tolist(), some.num_latents.tolist(), some.answer_ids.tolist(), scores[:, :number].tolist()]


@pytest.mark.slow
@pytest.mark.usefixtures("shaped_products")
@pytest.mark.parametrize(("kind", "layout", "sampler"), crossed(DRAWN))
def test_rollouts_and_scores_are_the_same_to_the_bit_however_many_are_drawn(
    kind, layout, sampler, tiny_backbone, questions
):
    backbone = stopping_early(tiny_backbone(kind, layout, num_latents=5), questions[4])
    scorer = LatentRewardModel.from_backbone(backbone).eval()

    def drawn(number: int, size: int | None, first: int = 0) -> list[Any]:
        engine = RolloutEngine(backbone, sampler, max_answer_tokens=6, rollouts_per_part=size)
        rollouts = engine.rollout(questions[4:5], number, first_rollout=first)
        return bits(rollouts, scorer.score(rollouts, rollouts_per_part=size), 3)

    wanted = drawn(16, PART)
    assert drawn(7, PART) == drawn(3, PART) == wanted
    assert drawn(7, None) != drawn(3, None)
    engine = RolloutEngine(backbone, sampler, max_answer_tokens=6, rollouts_per_part=PART)
    whole, later = engine.rollout(questions[4:5], 9), engine.rollout(questions[4:5], 4, first_rollout=3)
    assert torch.equal(later.latents, whole.latents[:, 3:7]) and later.texts == [whole.texts[0][3:7]]


@pytest.mark.slow
@pytest.mark.usefixtures("shaped_products")
@pytest.mark.parametrize("sampler", [NOISE, MonteCarloDropout(p=0.2), Deterministic()], ids=repr)
@pytest.mark.parametrize("kind", ["coconut", "codi", "colar"])
def test_records_are_the_same_alone_and_among_others(kind, sampler, tiny_backbone, problems):
    """Rollouts with drawn answers, greedy and written ones, scores, searches, diversity and the bill: all that a record holds."""
    backbone, written = (
        stopping_early(tiny_backbone(kind, "gpt2", num_latents=3), problems[2].question),
        tiny_backbone("cot", "llama", num_latents=0),
    )
    scorer = LatentRewardModel.from_backbone(backbone).eval()

    def records(batches: list[list[Problem]], number: int, size: int | None = PART) -> dict[str, Record]:
        engine = RolloutEngine(backbone, sampler, 4, AnswerSampler(0.7, 0.9), rollouts_per_part=size)
        written_engine = RolloutEngine(written, max_answer_tokens=2)
        evaluator = Evaluator(engine, scorer, None, SEARCHERS, number, written_engine=written_engine)
        return {record.problem_id: record for batch in batches for record in evaluator.evaluate(batch)}

    together, plain = records([problems], 7), records([problems], 7, None)
    assert records([[problems[2]]], 7, None)["id-2"] != plain["id-2"]
    assert records([problems[5:], problems[4::-1]], 7) == together
    few = records([[problems[2]]], 3)["id-2"]
    assert few.rollouts == together["id-2"].rollouts[:3]
    assert (few.greedy, few.written) == (together["id-2"].greedy, together["id-2"].written)
    assert few.search == together["id-2"].search


@pytest.mark.slow
@pytest.mark.usefixtures("shaped_products")
@pytest.mark.parametrize("name", ["zero", "shuffle", "truncate"])
def test_answers_after_other_latents_are_the_same_alone_and_among_others(name, tiny_backbone, problems):
    control = LatentControl(
        name, 1 if name == "truncate" else None, other_problems(problems) if name == "shuffle" else {}
    )
    engine = RolloutEngine(tiny_backbone("coconut", "gpt2"), NOISE, 6, AnswerSampler(), rollouts_per_part=PART)
    seven, three = (Evaluator(engine, None, None, [], number, control=control) for number in (7, 3))
    whole, alone = seven.evaluate(problems)[3], three.evaluate([problems[3]])[0]
    assert alone.rollouts == whole.rollouts[:3] and alone.greedy == whole.greedy


@pytest.mark.parametrize("sampler", [SAMPLERS[name] for name in DRAWN], ids=DRAWN)
@pytest.mark.parametrize("kind", ["coconut", "colar"])
def test_what_is_asked_for_and_its_cost_are_those_of_any_batch(kind, sampler, tiny_backbone, questions):
    backbone = tiny_backbone(kind, "llama", num_latents=4)
    parts = RolloutEngine(backbone, sampler, 6, rollouts_per_part=PART)
    plain = RolloutEngine(backbone, sampler, 6).rollout(questions[:3], 7, seed=1)
    for i in range(3):
        found = parts.rollout([questions[i]], 7, seed=1)
        same(found, plain, slice(i, i + 1))


@pytest.mark.slow
@pytest.mark.skipif(kernels() is None, reason="no kernels on this machine")
@pytest.mark.parametrize("kind", ["coconut", "codi", "colar"])
def test_by_the_kernels_records_are_those_of_any_batch_to_the_bit(kind, tiny_backbone, problems):
    backbone = stopping_early(tiny_backbone(kind, "gpt2", num_latents=3, n_embd=64), problems[2].question).freeze()
    scorer = LatentRewardModel.from_backbone(backbone).eval().freeze()
    found, plain = (
        Evaluator(RolloutEngine(backbone, NOISE, 6, rollouts_per_part=size), scorer, None, SEARCHERS, 7).evaluate(
            problems
        )
        for size in (PART, None)
    )
    assert found == plain


@pytest.mark.usefixtures("shaped_products")
def test_chosen_answers_are_the_same_alone_and_among_others(tiny_backbone, questions, monkeypatch):
    monkeypatch.setattr("latent_tts.engine.rollouts.parse_answer", lambda text: float(sum(text.encode()) % 3))
    backbone = tiny_backbone("coconut", "gpt2")
    engine, scorer = (
        RolloutEngine(backbone, NOISE, 4, rollouts_per_part=PART),
        LatentRewardModel.from_backbone(backbone).eval(),
    )
    for strategy in ("weighted_voting", "beam_search"):
        answers = solve(questions[:3], engine, scorer, strategy, num_rollouts=6)
        assert answers == [solve([one], engine, scorer, strategy, num_rollouts=6)[0] for one in questions[:3]]


def test_a_part_that_does_not_fit_is_one_sentence_and_none_is_cut(tiny_backbone, problems, monkeypatch, recwarn):
    rows, fork = [], ThoughtState.fork

    def full(self: ThoughtState, num_children: int, *args: int) -> ThoughtState:
        rows.append(self.num_rows * num_children)
        if rows[-1] >= PART:
            raise torch.OutOfMemoryError
        return fork(self, num_children, *args)

    monkeypatch.setattr(ThoughtState, "fork", full)
    engine = RolloutEngine(tiny_backbone("coconut", "gpt2"), NOISE, 4, rollouts_per_part=PART)
    with pytest.raises(UserError, match=r"with 4 rollouts fits .* a smaller --model.rollouts_per_part"):
        Evaluator(engine, num_rollouts=3).evaluate(problems)
    assert rows == [PART] and not recwarn


def test_what_parts_cannot_be_is_refused(tiny_backbone, questions):
    backbone = tiny_backbone("coconut", "gpt2")
    with pytest.raises(UserError, match="rollouts_per_part must be at least 1, got 0"):
        RolloutEngine(backbone, rollouts_per_part=0)
    with pytest.raises(UserError, match="one at a time: pass one question, not 2"):
        RolloutEngine(backbone, rollouts_per_part=2).rollout(questions[:2], 4)


# The command --------------------------------------------------------------------------------------------------------


def evaluate(*args: str) -> int:
    return main_guard(lambda: EvaluationCLI(args).run())


@pytest.fixture(scope="module")
def options(tiny_checkpoint, problem_file, tmp_path_factory) -> list[str]:
    reward_model = tmp_path_factory.mktemp("reward") / "rm"
    LatentRewardModel.from_backbone(load_backbone(str(tiny_checkpoint))).save_pretrained(reward_model)
    return [
        f"--model.backbone={tiny_checkpoint}",
        f"--model.reward_model={reward_model}",
        "--model.search=[{name: beam_search, num_beams: 2, num_candidates: 2}]",
        f"--data.source={problem_file}",
        "--data.limit=9",
        "--model.max_answer_tokens=4",
        "--model.rollouts_per_part=4",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]


def records_of(output: Path) -> list[str]:
    """Lines of all ranks, in one order."""
    return sorted(line for path in (output / "predictions").glob("*.jsonl") for line in path.read_text().splitlines())


@pytest.mark.slow
@pytest.mark.usefixtures("shaped_products")
@pytest.mark.parametrize("keep", ["true", "false"])
def test_a_run_that_is_killed_and_grows_in_other_batches_has_the_records_of_a_fresh_one(
    keep, options, tmp_path, monkeypatch
):
    command = [*options, f"--model.keep_latents={keep}"]
    assert evaluate(*command, f"--output={tmp_path / 'fresh'}", "--model.num_rollouts=7", "--data.batch_size=9") == 0
    append = RecordWriter.append
    monkeypatch.setattr(RecordWriter, "append", dying_after(4))
    with pytest.raises(KilledError):
        evaluate(*command, f"--output={tmp_path / 'grown'}", "--model.num_rollouts=3", "--data.batch_size=3")
    monkeypatch.setattr(RecordWriter, "append", append)
    for number, size in ((3, 2), (6, 4), (7, 1)):
        more = (f"--model.num_rollouts={number}", f"--data.batch_size={size}")
        assert evaluate(*command, f"--output={tmp_path / 'grown'}", *more) == 0
    assert len(records_of(tmp_path / "fresh")) == 9
    assert records_of(tmp_path / "grown") == records_of(tmp_path / "fresh")


@pytest.mark.slow
def test_two_processes_give_the_records_of_one_in_other_batches(options, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}
    for name, *more in (("one", "--data.batch_size=4"), ("two", "--trainer.devices=2", "--trainer.strategy=ddp")):
        words = [*options, f"--output={tmp_path / name}", "--model.num_rollouts=5", *more]
        done = subprocess.run(
            [sys.executable, "tests/shapes.py", *words],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "two" / "predictions").glob("*.jsonl"))) == 2
    assert records_of(tmp_path / "one") == records_of(tmp_path / "two")
    assert evaluate(*options, f"--output={tmp_path / 'other'}", "--model.num_rollouts=5") == 0
    assert records_of(tmp_path / "one") != records_of(tmp_path / "other")  # by torch's own products


@pytest.mark.slow
def test_the_size_is_a_setting_of_the_run_and_another_is_refused(options, tmp_path, capsys):
    command = [*options, f"--output={tmp_path}", "--data.limit=1", "--model.num_rollouts=2"]
    assert evaluate(*command) == 0
    assert json.loads((tmp_path / "run.json").read_text())["settings"]["model.rollouts_per_part"] == 4
    before = records_of(tmp_path)
    for other in ("8", "null"):
        assert evaluate(*command, f"--model.rollouts_per_part={other}") == 2
        assert f"model.rollouts_per_part was 4 and is {other} now" in capsys.readouterr().err
    assert records_of(tmp_path) == before
