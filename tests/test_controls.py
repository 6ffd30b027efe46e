"""Controls of the latents against a plain forward pass, and that what a problem is paired with is not the batch's affair."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from datamodules.rollout_data import RolloutDataModule
from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError
from latent_tts.evaluation.controls import LatentControl, control_of, other_problems
from latent_tts.evaluation.evaluator import Evaluator
from latent_tts.problems import Problem
from latent_tts.sampling import AdditiveGaussianNoise, AnswerSampler, Deterministic, MonteCarloDropout
from lightning_modules.parallel_tts_module import ParallelTTSModule
from tests.naive import MaskedForward, PlainModel, decode, naive_rollout

LIMIT = 4


@pytest.fixture
def problems(questions):
    return [Problem(f"p{i}", question, float(i)) for i, question in enumerate(questions)]


def fed(control, thoughts: dict[int, torch.Tensor], i: int) -> torch.Tensor:
    """What the control feeds to problem i, (t, D), from the thoughts on every problem: the definition written out."""
    if control.name == "zero":
        return torch.zeros_like(thoughts[i])
    return thoughts[i][: control.truncate_after] if control.name == "truncate" else thoughts[i - 1 if i else 1]


CONTROLS = [LatentControl("zero"), LatentControl("shuffle"), LatentControl("truncate", 2), LatentControl("truncate", 0)]


@torch.no_grad()
@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: f"{control.name}-{control.truncate_after}")
@pytest.mark.parametrize("kind", ["coconut", "codi", "colar"])
def test_answers_are_those_of_a_plain_model_that_is_fed_the_other_latents(kind, control, tiny_backbone, questions):
    """Greedy thoughts by hand on every problem, then prompt, latents, end of thought and answer in one sequence."""
    backbone, questions = tiny_backbone(kind, "llama", num_latents=3), questions[:3]
    problems = [Problem(f"p{i}", question, 0.0) for i, question in enumerate(questions)]
    control.others = other_problems(problems)
    engine = RolloutEngine(backbone, Deterministic(), LIMIT)
    found = control.rollouts(engine, engine.start(questions), problems, 1, seed=0)
    plain = PlainModel(backbone)
    own = [naive_rollout(backbone, Deterministic(), question, 0, 0, LIMIT).latents for question in questions]
    for i, question in enumerate(questions):
        latents = fed(control, dict(enumerate(own)), i)
        prompt = plain.embed(plain.prompt(question))
        forward = MaskedForward(plain, Deterministic(), torch.zeros(1, dtype=torch.int64), len(prompt))
        ids = decode(plain, forward, torch.cat([prompt, latents]), len(latents) - 1, LIMIT)
        assert found.answer_ids[i, 0].tolist() == ids + [backbone.pad_token_id] * (LIMIT - len(ids))
        assert found.num_latents[i, 0] == len(latents)
        torch.testing.assert_close(found.latents[i, 0, : len(latents)], latents, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: f"{control.name}-{control.truncate_after}")
@pytest.mark.parametrize(
    "sampler", [AdditiveGaussianNoise(0.3), MonteCarloDropout(0.2, scope="prompt+latent")], ids=str
)
def test_records_do_not_depend_on_the_batch(sampler, control, tiny_backbone, problems):
    """Nor on the order in which problems come: the pairs are those of the data."""
    control.others = other_problems(problems)
    engine = RolloutEngine(tiny_backbone("colar", "llama", num_latents=3), sampler, LIMIT, AnswerSampler(0.9))
    evaluator = Evaluator(engine, num_rollouts=3, control=control)

    def records(some):  # diversity is a float, equal up to its last bits in a model that is not frozen
        return [replace(record, diversity=()) for record in evaluator.evaluate(some)]

    together = records(problems)
    apart = [records([problem])[0] for problem in problems[:2]]
    turned = records(problems[4:][::-1])[::-1]
    assert apart == together[:2] and turned == together[4:]


def test_two_processes_pair_problems_as_one_does(tiny_backbone, questions, tmp_path, monkeypatch):
    """Each evaluates its share of the problems, and pairs them with what the other has."""
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps({"question": one, "answer": str(i)}) + "\n" for i, one in enumerate(questions)))
    backbone = tiny_backbone("coconut", "llama", num_latents=3)

    def records(rank, processes):
        monkeypatch.setattr("datamodules.rollout_data.rank_and_world_size", lambda: (rank, processes))
        data, trainer = RolloutDataModule(str(file), batch_size=1), SimpleNamespace()
        data.setup("predict")
        module = ParallelTTSModule(
            backbone, AdditiveGaussianNoise(0.5), 2, max_answer_tokens=LIMIT, latent_control="shuffle"
        )
        trainer.datamodule, module.trainer = data, trainer  # type: ignore[assignment]
        module.setup("predict")
        found = [record for batch in data.predict_dataloader() for record in module.predict_step(batch)]
        return {record.problem_id: replace(record, diversity=()) for record in found}

    first, second = records(0, 2), records(1, 2)
    assert first and second and not first.keys() & second.keys()
    assert first | second == records(0, 1)


def test_zeros_leave_nothing_of_the_noise_and_shuffled_latents_are_the_neighbours(tiny_backbone, problems, questions):
    engine = RolloutEngine(tiny_backbone("coconut", "gpt2"), AdditiveGaussianNoise(2.0), LIMIT)
    start, ids = engine.start(questions, 5, [one.problem_id for one in problems]), [one.problem_id for one in problems]
    plain = engine.rollout(questions, 3, 5, ids)
    zero = LatentControl("zero").rollouts(engine, start, problems, 3, 5)
    shuffled = LatentControl("shuffle", others=other_problems(problems)).rollouts(engine, start, problems, 3, 5)
    assert all(len(set(texts)) == 1 for texts in zero.texts) and not zero.latents.any()
    torch.testing.assert_close(shuffled.latents[1:], plain.latents[:-1], rtol=1e-4, atol=1e-5)
    assert shuffled.texts != plain.texts
    assert torch.equal(shuffled.shared_steps, plain.shared_steps)


def test_the_other_problem_is_the_nearest_before_with_another_question():
    """Letters are questions; written out for A A B B C A."""
    made = [Problem(f"{i}{letter}", f"Question {letter}?", 0.0) for i, letter in enumerate("AABBCA")]
    others = {key: one.problem_id for key, one in other_problems(made).items()}
    assert others == {"0A": "2B", "1A": "2B", "2B": "1A", "3B": "1A", "4C": "3B", "5A": "4C"}
    grown = {key: one.problem_id for key, one in other_problems([*made, Problem("6D", "Question D?", 0.0)]).items()}
    assert {key: grown[key] for key in others} == others
    with pytest.raises(UserError, match="there is but one question"):
        other_problems(made[:2])


def test_settings_and_metrics_name_the_control_where_there_is_one(tiny_backbone):
    backbone = tiny_backbone("coconut", "gpt2")
    plain = ParallelTTSModule(backbone, Deterministic(), num_rollouts=2)
    assert not [key for key in plain.settings() if "control" in key or "truncate" in key]
    assert "latent_control" not in plain.evaluated()
    controlled = ParallelTTSModule(
        backbone, Deterministic(), num_rollouts=2, latent_control="truncate", truncate_after=1
    )
    settings = controlled.settings()
    assert (settings["model.latent_control"], settings["model.truncate_after"]) == ("truncate", 1)
    assert (controlled.evaluated()["latent_control"], controlled.evaluated()["truncate_after"]) == ("truncate", 1)


@pytest.mark.parametrize(
    ("name", "after", "message"),
    [
        ("truncate", None, "belong together: give both, or neither"),
        ("zero", 2, "belong together: give both, or neither"),
        (None, 2, "belong together: give both, or neither"),
        ("ones", None, "latent_control must be one of zero, shuffle, truncate, got 'ones'"),
    ],
)
def test_options_that_do_not_fit_are_refused(name, after, message):
    with pytest.raises(UserError, match=message):
        control_of(name, after)


def test_controls_without_meaning_are_refused(tiny_backbone, problems):
    from latent_tts.reward import LatentRewardModel

    backbone = tiny_backbone("coconut", "gpt2", num_latents=3)
    engine = RolloutEngine(backbone, AdditiveGaussianNoise(0.3), LIMIT)
    with pytest.raises(UserError, match="truncate_after must lie between 0 and 2, got 3: there are 3 thoughts"):
        Evaluator(engine, control=LatentControl("truncate", 3))
    with pytest.raises(UserError, match="Scores of latents that were replaced mean nothing"):
        Evaluator(engine, LatentRewardModel.from_backbone(backbone).eval(), control=LatentControl("zero"))
    with pytest.raises(UserError, match="knows no other problem for p0"):
        Evaluator(engine, num_rollouts=1, control=LatentControl("shuffle")).evaluate(problems[:1])
    writer = RolloutEngine(tiny_backbone("cot", "gpt2", num_latents=0), Deterministic(), LIMIT)
    with pytest.raises(UserError, match="this backbone reasons in writing"):
        Evaluator(writer, control=LatentControl("zero"))
