"""Adaptive voting: the rule by the Beta distribution, the stop by a loop, and drawing by it equal to replaying it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from latent_tts.aggregation import AdaptiveVoting, MajorityVoting
from latent_tts.aggregation.adaptive_voting import probability_ahead
from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError
from latent_tts.evaluation.evaluator import Evaluator
from latent_tts.evaluation.strategies import make_aggregations, make_searches
from latent_tts.evaluation.summary import EvaluationMetrics
from latent_tts.problems import Problem
from latent_tts.sampling import AdditiveGaussianNoise, MonteCarloDropout
from latent_tts.search import AdaptiveRollouts


@pytest.mark.parametrize(("leader", "second"), [(0, 0), (1, 0), (4, 0), (5, 5), (7, 3), (40, 31), (300, 260)])
def test_the_posterior_is_that_of_the_beta_distribution(leader, second):
    assert probability_ahead(leader, second) == pytest.approx(stats.beta(leader + 1, second + 1).sf(0.5), abs=1e-12)


def stop_by_hand(answers, confidence, portion):
    """After every portion the two largest counts are compared; a None is nobody's vote."""
    for end in range(portion, len(answers), portion):
        voters = [answer for answer in answers[:end] if answer is not None]
        counts = [*sorted((voters.count(answer) for answer in set(voters)), reverse=True), 0, 0]
        if stats.beta(counts[0] + 1, counts[1] + 1).sf(0.5) >= confidence:
            return end
    return len(answers)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("confidence", "portion"), [(0.95, 4), (0.9, 3), (0.99, 1), (0.8, 50)])
def test_it_stops_as_the_definition_written_out_and_answers_by_majority(seed, confidence, portion):
    rng, voting = np.random.default_rng(seed), AdaptiveVoting(confidence, portion)
    answers = [None if rng.random() < 0.2 else float(rng.integers(3)) for _ in range(22)]
    correct, ks = [answer == 0.0 for answer in answers], [1, 2, 4, 8, 16, 22]
    stops = [stop_by_hand(answers[:k], confidence, portion) for k in ks]
    assert voting.rollouts_spent(answers, ks) == stops
    chosen = [MajorityVoting().choose(answers[:stop]).answer for stop in stops]
    assert voting.expected_accuracy(answers, correct, None, None, ks) == [float(one == 0.0) for one in chosen]
    assert voting.choose(answers).answer == chosen[-1]


def test_without_any_answer_nothing_is_settled():
    voting = AdaptiveVoting()
    assert voting.stop([None] * 10) == 10 and voting.choose([None] * 10).answer is None


def simulated(probabilities, draws, seed=0):
    """Stops and correctness of 600 problems of one kind: answer 0 is right, others by their probabilities."""
    rng = np.random.default_rng(seed)
    voting, rows = AdaptiveVoting(0.95, 4), rng.choice(len(probabilities), size=(600, draws), p=probabilities)
    stops = [voting.stop([float(answer) for answer in row]) for row in rows]
    right = [voting.choose([float(answer) for answer in row]).answer == 0.0 for row in rows]
    full = [MajorityVoting().choose([float(answer) for answer in row]).answer == 0.0 for row in rows]
    return np.mean(stops), np.mean(right), np.mean(full)


def test_it_spends_little_where_answers_agree_and_much_where_they_do_not():
    """Simulated: nine in ten agree, or two answers are as likely; at the first it loses less than 1 - 0.95 to the full vote."""
    easy, hard = simulated([0.9, 0.1], 64), simulated([0.5, 0.5], 64)
    assert easy[0] < 8 and hard[0] > 2 * easy[0]
    assert easy[2] - easy[1] < 0.05 and abs(hard[1] - 0.5) < 5 * 0.5 / 600**0.5


LIVE = AdaptiveRollouts(confidence=0.9, portion=2, max_rollouts=9)


@pytest.fixture
def problems(questions):
    return [Problem(f"p{i}", question, float(i % 3)) for i, question in enumerate(questions)]


@pytest.fixture
def engine(tiny_backbone, monkeypatch):
    """Answers are a hash of the text in two classes, so that votes of random models are settled at different times."""
    monkeypatch.setattr("latent_tts.engine.rollouts.parse_answer", lambda text: float(sum(text.encode()) % 5 == 0))

    def make(sampler, kind="coconut"):
        return RolloutEngine(tiny_backbone(kind, "llama", num_latents=3), sampler, max_answer_tokens=4)

    return make


@pytest.mark.parametrize(
    "sampler",
    [AdditiveGaussianNoise(1.0), MonteCarloDropout(0.3), MonteCarloDropout(0.3, scope="prompt+latent")],
    ids=str,
)
@pytest.mark.parametrize("kind", ["coconut", "colar"])
def test_drawing_by_the_rule_is_replaying_it_on_rollouts_drawn_at_once(kind, sampler, engine, questions):
    """The same answers and stops; the bill is that of the rollouts up to the stop, drawn alone."""
    engine = engine(sampler, kind)
    found = LIVE.search(engine, None, questions, seed=3)
    full = engine.rollout(questions, num_rollouts=9, seed=3)
    replay = AdaptiveVoting(0.9, 2)
    stops = [replay.stop(answers) for answers in full.answers]
    assert found.answers == [replay.choose(answers).answer for answers in full.answers]
    for i, stop in enumerate(stops):
        assert found.token_steps[i] == engine.rollout(questions[i : i + 1], stop, seed=3).token_steps[0]
    assert len(set(stops)) > 1


@pytest.mark.parametrize("ready", [1, 5, 9, 12])
@pytest.mark.parametrize("kind", ["coconut", "colar"])
def test_rollouts_that_are_drawn_already_are_taken_over(kind, ready, engine, questions, monkeypatch):
    """The same answers and bill, and nothing before the first rollout that was missing is drawn again."""
    engine = engine(AdditiveGaussianNoise(1.0), kind)
    alone = LIVE.search(engine, None, questions, seed=3)
    start = engine.start(questions, 3)
    drawn, firsts, draw = engine.rollout_from(start, ready), [], engine.rollout_from
    monkeypatch.setattr(engine, "rollout_from", lambda state, n, first: firsts.append(first) or draw(state, n, first))
    found = LIVE.search(engine, None, questions, seed=3, start=start, drawn=drawn)
    assert (found.answers, found.texts) == (alone.answers, alone.texts)
    assert torch.equal(found.token_steps, alone.token_steps)
    assert all(first >= ready for first in firsts) and bool(firsts) == (ready < 9)


def test_rollouts_between_two_numbers_are_those_drawn_alone(engine, questions):
    engine = engine(MonteCarloDropout(0.3, scope="prompt+latent"), "colar")
    part, alone = (
        engine.rollout(questions, 6, seed=3).between(2, 5),
        engine.rollout(questions, 3, seed=3, first_rollout=2),
    )
    assert (part.texts, part.answers) == (alone.texts, alone.answers)
    assert torch.equal(part.token_steps, alone.token_steps) and torch.equal(part.num_latents, alone.num_latents)


def test_what_is_found_does_not_depend_on_the_batch(engine, questions):
    engine = engine(AdditiveGaussianNoise(1.0))
    together = LIVE.search(engine, None, questions, seed=3)
    apart = [LIVE.search(engine, None, [question], seed=3) for question in questions]
    assert together.texts == [one.texts[0] for one in apart]
    assert together.token_steps.tolist() == [int(one.token_steps[0]) for one in apart]


def test_a_budget_of_token_steps_ends_it_at_the_next_portion(engine, questions):
    engine = engine(AdditiveGaussianNoise(1.0))
    never = AdaptiveRollouts(confidence=0.999999, portion=2, max_rollouts=9)
    limit = int(engine.rollout(questions[:1], 3, seed=3).token_steps[0])  # after two rollouts there is some left
    found = AdaptiveRollouts(0.999999, 2, 9, max_token_steps=limit).search(engine, None, questions[:1], seed=3)
    assert found.token_steps[0] == engine.rollout(questions[:1], 4, seed=3).token_steps[0]
    assert never.search(engine, None, questions[:1], seed=3).token_steps[0] > found.token_steps[0]


def test_an_evaluation_reports_accuracy_against_mean_compute_of_both_forms(engine, problems):
    """Replayed on N rollouts at every k, and drawn live: at the full budget of both the answers are the same."""
    parts = make_aggregations(["majority_voting", {"name": "adaptive_voting", "confidence": 0.9, "portion": 2}], False)
    evaluator = Evaluator(engine(AdditiveGaussianNoise(1.0)), None, parts, [LIVE], num_rollouts=9)
    metrics = EvaluationMetrics(9, 3, parts, list(evaluator.searches))
    records = evaluator.evaluate(problems)
    for record in records:
        metrics.update(record)
        assert record.search["adaptive_rollouts_c0.9_by2@9"].answer == record.chosen["adaptive_voting_c0.9_by2"]
    found = metrics.compute()
    replayed, live = "adaptive_voting_c0.9_by2", "adaptive_rollouts_c0.9_by2"
    assert found["accuracy"][live]["9"] == found["accuracy"][replayed]["9"]
    spent = found["token_steps"]
    assert spent[replayed]["1"] == spent["majority_voting"]["1"]
    assert spent[replayed]["9"] < spent["majority_voting"]["9"]
    assert spent[live]["9"] == pytest.approx(spent[replayed]["9"], rel=0.1)  # there the rollouts cost their mean
    assert live + "@9" in found["confidence_interval"] and live + "@9" in found["difference_to_majority_voting"]


def test_it_is_named_to_be_taken_and_needs_no_reward_model():
    assert [part.family for part in make_aggregations(None, scored=False)] == ["majority_voting"]
    (made,) = make_searches([{"name": "adaptive_rollouts", "max_rollouts": 32}], scored=False)
    assert isinstance(made, AdaptiveRollouts) and made.name == "adaptive_rollouts" and made.budget == "32"
    with pytest.raises(UserError, match="A search needs a reward model to guide it"):
        make_searches(["beam_search", "adaptive_rollouts"], scored=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": 0.5}, "confidence must lie between 0.5 and 1"),
        ({"confidence": 1.0}, "confidence must lie between 0.5 and 1"),
        ({"portion": 0}, "portion must be at least 1, got 0"),
        ({"max_rollouts": 0}, "max_rollouts must be at least 1, got 0"),
        ({"max_token_steps": 0}, "max_token_steps must be at least 1, got 0"),
    ],
)
def test_impossible_rules_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        AdaptiveRollouts(**options)
