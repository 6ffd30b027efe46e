"""One call from questions to answers: what the pieces give by themselves."""

from __future__ import annotations

import pytest

import latent_tts
from latent_tts import RolloutEngine, solve
from latent_tts.aggregation import AGGREGATIONS, BestOfN
from latent_tts.errors import UserError
from latent_tts.reward import LatentRewardModel
from latent_tts.sampling import AdditiveGaussianNoise
from latent_tts.search import SEARCHES, BeamSearch


@pytest.fixture(scope="module")
def backbone(tiny_backbone):
    return tiny_backbone("coconut", "gpt2", num_latents=3)


@pytest.fixture(scope="module")
def reward_model(backbone):
    return LatentRewardModel.from_backbone(backbone, seed=3)


@pytest.fixture
def engine(backbone, monkeypatch):
    """Draws answers that differ between rollouts: the parity and size of what the random model writes."""
    monkeypatch.setattr("latent_tts.engine.rollouts.parse_answer", lambda text: float(sum(text.encode()) % 3))
    monkeypatch.setattr("latent_tts.search.base.parse_answer", lambda text: float(sum(text.encode()) % 3))
    return RolloutEngine(backbone, AdditiveGaussianNoise(0.8), max_answer_tokens=4)


def test_voting_is_the_answer_of_most_rollouts(engine, questions):
    drawn = engine.rollout(questions, 9, seed=4).answers
    assert len({answer for row in drawn for answer in row}) == 3
    for answer, row in zip(solve(questions, engine, None, "majority_voting", 9, seed=4), drawn, strict=True):
        assert row.count(answer) == max(row.count(other) for other in row)


def test_best_of_n_is_the_answer_of_the_best_scored_rollout(engine, reward_model, questions):
    rollouts = engine.rollout(questions, 9)
    scores = reward_model.score(questions, rollouts.latents, rollouts.num_latents)
    best = scores.mean(-1).argmax(-1).tolist()
    expected = [row[i] for row, i in zip(rollouts.answers, best, strict=True)]
    assert solve(questions, engine, reward_model, {"name": "best_of_n", "reduction": "mean"}, 9) == expected
    assert BestOfN("mean").name == "best_of_n_mean"


def test_a_search_is_run_with_its_own_budget(engine, reward_model, questions):
    expected = BeamSearch(2, 3).search(engine, reward_model, questions).answers
    assert (
        solve(questions, engine, reward_model, {"name": "beam_search", "num_beams": 2, "num_candidates": 3}) == expected
    )


@pytest.mark.parametrize("strategy", [*AGGREGATIONS, *SEARCHES])
def test_every_strategy_answers_every_question(engine, reward_model, questions, strategy):
    assert len(solve(questions[:2], engine, reward_model, strategy, num_rollouts=4)) == 2


def test_what_cannot_be_done_is_refused_with_the_way_out(engine, questions):
    with pytest.raises(
        UserError, match="weighted_voting needs step scores: give a reward model, or take strategy='maj"
    ):
        solve(questions, engine)
    with pytest.raises(UserError, match="beam_search needs step scores"):
        solve(questions, engine, strategy="beam_search")
    with pytest.raises(UserError, match="no strategy 'median': choose from majority_voting, .*, particle_filtering"):
        solve(questions, engine, strategy="median")


def test_the_public_names_are_there():
    assert all(hasattr(latent_tts, name) for name in latent_tts.__all__)
