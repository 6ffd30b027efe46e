"""One prediction step: a record for each problem, the same in any batch."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError
from latent_tts.evaluation.record_making import _judged
from latent_tts.evaluation.records import Record
from latent_tts.metrics.diversity import step_diversity
from latent_tts.problems import Problem
from latent_tts.reward import LatentRewardModel
from latent_tts.sampling import AdditiveGaussianNoise, AnswerSampler, Deterministic, MonteCarloDropout
from lightning_modules.parallel_tts_module import ParallelTTSModule


@pytest.fixture(scope="module")
def backbone(tiny_backbone):
    return tiny_backbone("coconut", "gpt2", num_latents=3)


@pytest.fixture(scope="module")
def reward_folder(backbone, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("reward") / "tiny-rm"
    LatentRewardModel.from_backbone(backbone, seed=3).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def problems(questions) -> list[Problem]:
    return [Problem(f"id-{i}", question, float(i)) for i, question in enumerate(questions)]


def make_module(backbone, sampler=None, **kwargs) -> ParallelTTSModule:
    options = {"num_rollouts": 4, "seed": 5, "max_answer_tokens": 6} | kwargs
    return ParallelTTSModule(backbone, sampler or AdditiveGaussianNoise(0.4), **options).eval()


def test_what_was_evaluated_names_the_commit_of_every_model_from_the_hub(
    backbone, reward_folder, tmp_path, monkeypatch
):
    commit, asked = "0123456789abcdef" * 2 + "01234567", []

    def download(name, revision, allow_patterns):
        asked.append((name, revision))
        return shutil.copytree(reward_folder, tmp_path / "snapshots" / commit)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    from_hub = make_module(backbone, reward_model="somebody/scorer@v1").evaluated()
    from_folder = make_module(backbone, reward_model=reward_folder).evaluated()
    assert asked == [("somebody/scorer", "v1")]
    same = {"fingerprint": from_folder["reward_model"]["fingerprint"]}
    assert from_hub["reward_model"] == {"name": "somebody/scorer@v1", "commit": commit} | same
    assert from_folder["reward_model"] == {"name": reward_folder, "commit": None} | same
    assert from_hub["backbone"] == from_folder["backbone"]
    assert from_hub["backbone"]["commit"] is None


def test_a_record_holds_what_the_engine_drew(backbone, problems):
    module = make_module(backbone)
    record = module.predict_step(problems[:2])[1].to_json()
    question, ids = [problems[1].question], [problems[1].problem_id]
    drawn = RolloutEngine(backbone, AdditiveGaussianNoise(0.4), 6).rollout(question, 4, 5, ids)
    greedy = RolloutEngine(backbone, Deterministic(), 6).rollout(question, 1)
    assert (record["problem_id"], record["question"], record["gold"]) == ("id-1", question[0], 1.0)
    assert [rollout["text"] for rollout in record["rollouts"]] == drawn.texts[0]
    assert [rollout["answer"] for rollout in record["rollouts"]] == drawn.answers[0]
    assert [rollout["correct"] for rollout in record["rollouts"]] == [answer == 1.0 for answer in drawn.answers[0]]
    assert all(rollout["num_latents"] == 3 and rollout["step_scores"] is None for rollout in record["rollouts"])
    assert record["greedy"] == {
        "text": greedy.texts[0][0],
        "answer": greedy.answers[0][0],
        "correct": greedy.answers[0][0] == 1.0,
    }
    assert record["diversity"] == pytest.approx(step_diversity(drawn.latents[0]).tolist(), rel=1e-4)
    steps = record["token_steps"]
    assert (steps["rollouts"], steps["greedy"]) == (int(drawn.token_steps[0]), int(greedy.token_steps[0]))
    assert set(record["chosen"]) == {"majority_voting"} and record["search"] == {}


def test_rollouts_answer_as_drawn_and_the_greedy_answer_stays(backbone, problems):
    """Settings name an answer sampler where there is one, so that records of another are not taken for its own."""
    plain, drawing = make_module(backbone), make_module(backbone, answer_sampler=AnswerSampler(0.7, 0.9))
    record, other = drawing.predict_step(problems[:1])[0], plain.predict_step(problems[:1])[0]
    engine = RolloutEngine(backbone, AdditiveGaussianNoise(0.4), 6, AnswerSampler(0.7, 0.9))
    drawn = engine.rollout([problems[0].question], 4, 5, [problems[0].problem_id])
    assert [rollout.text for rollout in record.rollouts] == drawn.texts[0]
    assert record.greedy == other.greedy and record.rollouts != other.rollouts
    named = {name: value for name, value in drawing.settings().items() if name not in plain.settings()}
    assert named == {"model.answer_sampler.temperature": 0.7, "model.answer_sampler.top_p": 0.9}
    assert drawing.evaluated()["answer_sampler"] == {"temperature": 0.7, "top_p": 0.9}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_records_do_not_depend_on_the_batch(backbone, problems, batch_size):
    module = make_module(backbone)
    whole = module.predict_step(problems)
    batches = [problems[i : i + batch_size] for i in range(0, len(problems), batch_size)]
    apart = [record for batch in batches for record in module.predict_step(batch)]
    for left, right in zip(whole, apart, strict=True):
        assert left.diversity == pytest.approx(right.diversity, rel=1e-4)
        assert replace(left, diversity=()) == replace(right, diversity=())


@pytest.mark.parametrize("kind", ["coconut", "codi", "colar"])
def test_records_of_every_kind_are_json_and_can_be_counted(tiny_backbone, problems, kind):
    module = make_module(tiny_backbone(kind, "llama", num_latents=3))
    records = module.predict_step(problems[:3])
    read = [Record.from_json(json.loads(json.dumps(record.to_json(), allow_nan=False))) for record in records]
    assert module.empty_metrics().count_all(read).compute()["num_problems"] == 3


def test_sampling_without_noise_gives_the_greedy_answer_in_every_rollout(backbone, problems):
    for record in make_module(backbone, AdditiveGaussianNoise(0.0)).predict_step(problems[:3]):
        assert {rollout.text for rollout in record.rollouts} == {record.greedy.text}
        assert record.diversity == pytest.approx([0, 0, 0], abs=1e-9)


@pytest.mark.parametrize(
    ("sampler", "shared"),
    [
        (AdditiveGaussianNoise(0.4), lambda prompt: prompt),
        (MonteCarloDropout(0.1, scope="latent"), lambda prompt: prompt - 1),
        (MonteCarloDropout(0.1, scope="prompt+latent"), lambda prompt: 0),
    ],
    ids=["agn", "dropout-latent", "dropout-prompt"],
)
def test_compute_is_what_is_shared_plus_what_each_rollout_costs(backbone, problems, sampler, shared):
    """One rollout's cost, shared part included, is that of a run with a single rollout."""
    steps = make_module(backbone, sampler).predict_step(problems[:1])[0].token_steps
    alone = make_module(backbone, sampler, num_rollouts=1).predict_step(problems[:1])[0].token_steps
    prompt = len(backbone.encode_prompts([problems[0].question])[0])
    assert steps.rollouts_shared == alone.rollouts_shared == shared(prompt)
    own = (steps.rollouts - steps.rollouts_shared) / 4
    assert 3 + 2 <= own - (prompt - shared(prompt)) <= 3 + 1 + 6  # thoughts, end of thought and 1 to 6 answer tokens
    assert alone.rollouts - alone.rollouts_shared >= 3 + 2


def test_step_scores_are_those_of_the_reward_model(backbone, problems, reward_folder):
    module = make_module(backbone, reward_model=reward_folder)
    records = module.predict_step(problems[:2])
    drawn = RolloutEngine(backbone, AdditiveGaussianNoise(0.4), 6).rollout(
        [p.question for p in problems[:2]], 4, 5, [p.problem_id for p in problems[:2]]
    )
    scores = module.reward_model.score(drawn)
    for record, expected in zip(records, scores.tolist(), strict=True):
        for rollout, steps in zip(record.rollouts, expected, strict=True):
            assert rollout.step_scores == pytest.approx(steps, rel=1e-5)
    assert set(records[0].chosen) == {"majority_voting", "best_of_n", "weighted_voting", "hybrid"}
    prompt = len(backbone.encode_prompts([problems[0].question])[0])
    assert records[0].token_steps.reward == prompt + 4 * 3


def test_searches_are_records_of_their_own_and_are_measured(backbone, problems, reward_folder):
    search = [
        {"name": "beam_search", "num_beams": 2, "num_candidates": 2},
        {"name": "particle_filtering", "num_particles": 4},
    ]
    module = make_module(backbone, reward_model=reward_folder, search=search)
    records = module.predict_step(problems[:2])
    for record in records:
        assert set(record.search) == {"beam_search@2x2", "particle_filtering@4"}
    found = module.empty_metrics().count_all(records).compute()
    assert set(found["accuracy"]["beam_search"]) == {"2x2"} and set(found["token_steps"]["particle_filtering"]) == {"4"}


@pytest.mark.parametrize(
    ("sampler", "passes"),
    [
        (AdditiveGaussianNoise(0.4), 1),
        (MonteCarloDropout(0.2, scope="latent"), 2),  # the greedy one leaves no token for a random pass
        (MonteCarloDropout(0.2, scope="prompt+latent"), 3),  # rollouts, greedy, search: nothing can be shared
    ],
    ids=["noise", "dropout", "dropout in the prompt"],
)
def test_rollouts_greedy_answer_and_searches_share_one_prompt_pass(
    backbone, problems, reward_folder, monkeypatch, sampler, passes
):
    encoded = []
    encode = RolloutEngine._encode
    monkeypatch.setattr(
        RolloutEngine, "_encode", lambda self, state, prompts: encoded.append(prompts) or encode(self, state, prompts)
    )
    make_module(backbone, sampler, reward_model=reward_folder, search=["beam_search"]).predict_step(problems[:3])
    assert len(encoded) == passes


def test_the_answer_rule_decides_what_counts_as_right(backbone, problems):
    near = Problem("near", "?", 3.0)
    for rule, expected in (("tolerance", True), ("strict", False)):
        rule = make_module(backbone, answer_rule=rule).evaluator.answer_rule
        assert _judged(near, "", 3.0000001, rule)[2] == expected
        assert _judged(near, "", 3.0, rule)[2]


def test_settings_name_everything_that_changes_the_records(backbone, tiny_backbone, reward_folder):
    base = make_module(backbone).settings()
    changes = {
        "model.seed": make_module(backbone, seed=6),
        "model.num_rollouts": make_module(backbone, num_rollouts=5),
        "model.sampler.sigma": make_module(backbone, AdditiveGaussianNoise(0.5)),
        "model.max_answer_tokens": make_module(backbone, max_answer_tokens=7),
        "model.answer_rule": make_module(backbone, answer_rule="strict"),
        "model.aggregations": make_module(backbone, aggregations=[]),
        "model.rollouts_per_part": make_module(backbone, rollouts_per_part=2),
        "model.backbone.fingerprint": make_module(tiny_backbone("coconut", "gpt2", num_latents=3, seed=9)),
        "model.reward_model.fingerprint": make_module(
            backbone, reward_model=reward_folder, aggregations=["majority_voting"]
        ),
    }
    for name, module in changes.items():
        settings = module.settings()
        assert {key for key in base | settings if base.get(key) != settings.get(key)} == {name}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_rollouts": 0}, "num_rollouts must be at least 1, got 0"),
        ({"aggregations": ["median"]}, "knows no 'median': choose from majority_voting, best_of_n"),
        ({"aggregations": ["best_of_n"]}, "best_of_n needs step scores: give --model.reward_model"),
        ({"aggregations": ["majority_voting", "majority_voting"]}, "names one twice"),
        ({"aggregations": [{"name": "majority_voting", "power": 2}]}, "does not take these options"),
        ({"search": ["beam_search"]}, "needs a reward model"),
        ({"reward_model": "nowhere"}, "no folder 'nowhere'"),
    ],
)
def test_options_that_cannot_be_met_are_named(backbone, options, message):
    with pytest.raises(UserError, match=message):
        make_module(backbone, **options)


def test_unknown_searches_are_named(backbone, reward_folder):
    with pytest.raises(UserError, match="knows no 'tree': choose from beam_search, particle_filtering"):
        make_module(backbone, reward_model=reward_folder, search=["tree"])


def test_a_reward_model_of_another_size_is_refused(tiny_backbone, tmp_path: Path, backbone):
    wide = tiny_backbone("coconut", "gpt2", num_latents=3, n_embd=48)
    LatentRewardModel.from_backbone(wide).save_pretrained(tmp_path / "rm")
    with pytest.raises(UserError, match="scores latents of size 48, but the backbone's have 32"):
        make_module(backbone, reward_model=str(tmp_path / "rm"))


class PoisonedNoise(AdditiveGaussianNoise):
    """Noise that is NaN in the second thought of the rollouts whose stream starts with a small number."""

    def perturb(self, latents: Tensor, keys: Tensor, step: Tensor) -> Tensor:
        poisoned = (step == 2) & (keys < 0)
        return super().perturb(latents, keys, step).masked_fill(poisoned.unsqueeze(-1), torch.nan)


def test_a_number_that_is_lost_ends_its_rollout_and_the_problem_goes_on(backbone, problems, reward_folder):
    """What is left of a problem is what a run without the poison has; searches leave lost rows out."""
    options = {"num_rollouts": 8, "reward_model": reward_folder, "search": ["beam_search", "particle_filtering"]}
    module = make_module(backbone, PoisonedNoise(0.4), **options)
    records = module.predict_step(problems)
    whole = make_module(backbone, **options).predict_step(problems)
    lost, metrics = 0, module.empty_metrics()
    for record, other in zip(records, whole, strict=True):
        for rollout, sound in zip(record.rollouts, other.rollouts, strict=True):
            lost += not rollout.finite
            if rollout.finite:
                assert (rollout.text, rollout.num_latents) == (sound.text, sound.num_latents)
                assert rollout.step_scores == pytest.approx(sound.step_scores, rel=1e-4)
            else:
                assert rollout.answer is None and not rollout.correct and rollout.step_scores == ()
        assert all(value is None or math.isfinite(value) for value in record.diversity)
        metrics.update(Record.from_json(json.loads(json.dumps(record.to_json(), allow_nan=False))))
    assert 0 < lost < 8 * len(problems)
    assert metrics.compute()["nonfinite_rollouts"] == lost
