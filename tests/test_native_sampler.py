"""The spread that a CoLaR predicts for its own thoughts: against the slow version of the method, and the engine's promises."""

from __future__ import annotations

import pytest
import torch

from latent_tts.annotation.prefix_values import annotate
from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError
from latent_tts.sampling import AdditiveGaussianNoise, NativeGaussian
from latent_tts.search import BeamSearch, ParticleFiltering
from tests.naive import naive_rollout

pytestmark = pytest.mark.slow

SEED = 7


@pytest.fixture(params=["gpt2", "llama"])
def colar(request, tiny_backbone, questions):
    """A random CoLaR with a deviation head, whose stop sign is a token that it often finds most likely after two thoughts."""
    backbone = tiny_backbone("colar", request.param, num_latents=4, latent_log_std=True, latent_embedding_std=0.5)
    engine = RolloutEngine(backbone, NativeGaussian(), max_answer_tokens=1)
    with torch.inference_mode():
        state = engine._advance(engine.expand(engine.expand(engine.start(questions, SEED), 2)))
        backbone.end_of_thought_id = int(backbone.logits(state.hidden).argmax(-1).mode().values)
    return backbone


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_batched_rollouts_equal_recomputing_everything_for_every_token(colar, temperature, questions):
    sampler = NativeGaussian(temperature)
    rollouts = RolloutEngine(colar, sampler, max_answer_tokens=5).rollout(questions, num_rollouts=2, seed=SEED)
    for b, question in enumerate(questions):
        for n in range(2):
            naive = naive_rollout(colar, sampler, question, n, SEED, max_answer_tokens=5)
            count = len(naive.latents)
            assert rollouts.num_latents[b, n] == count
            torch.testing.assert_close(rollouts.latents[b, n, :count], naive.latents, rtol=1e-4, atol=1e-5)
            ids = naive.answer_ids + [colar.pad_token_id] * (5 - len(naive.answer_ids))
            assert rollouts.answer_ids[b, n].tolist() == ids
    assert rollouts.num_latents.unique().numel() > 1  # some rows do stop by themselves


def test_batch_size_order_and_number_of_rollouts_change_nothing(colar, questions):
    engine = RolloutEngine(colar, NativeGaussian(), max_answer_tokens=6)
    whole = engine.rollout(questions, num_rollouts=3, seed=SEED)
    backwards = engine.rollout(questions[::-1], num_rollouts=5, seed=SEED)
    assert [row[:3] for row in backwards.texts[::-1]] == whole.texts
    for b, question in enumerate(questions):
        alone = engine.rollout([question], num_rollouts=3, seed=SEED)
        assert alone.texts == whole.texts[b : b + 1]
        assert torch.equal(alone.num_latents, whole.num_latents[b : b + 1])
        torch.testing.assert_close(alone.latents, whole.latents[b : b + 1], rtol=1e-4, atol=1e-5)


def test_temperature_zero_is_greedy(colar, questions):
    greedy = RolloutEngine(colar, max_answer_tokens=5).rollout(questions, num_rollouts=2)
    sampled = RolloutEngine(colar, NativeGaussian(temperature=0.0), max_answer_tokens=5).rollout(
        questions, num_rollouts=2
    )
    assert sampled.texts == greedy.texts
    torch.testing.assert_close(sampled.latents, greedy.latents, rtol=1e-4, atol=1e-5)


def test_first_thoughts_are_spread_as_the_head_predicts(colar, questions):
    """The mean of 4,000 first thoughts within 5 standard errors of the predicted one, deviations within 10 %."""
    state = RolloutEngine(colar).start(questions[1:2])
    with torch.inference_mode():
        mean, std = colar.latent_gaussian(state.hidden[0])  # type: ignore[index]
    thoughts = RolloutEngine(colar, NativeGaussian(temperature=2.0)).expand(state, 4000).latents[:, 0]
    assert ((thoughts.mean(0) - mean).abs() < 5 * 2 * std / 4000**0.5).all()
    torch.testing.assert_close(thoughts.std(0), 2 * std, rtol=0.1, atol=0)


def test_a_rewound_state_thinks_the_same_thoughts_again(colar, questions):
    engine = RolloutEngine(colar, NativeGaussian(), max_answer_tokens=4)
    state = engine.expand(engine.start(questions, SEED), 3)
    while state.step < 4:
        state = engine.expand(state)
    again = state.rewind(2)
    while again.step < 4:
        again = engine.expand(again)
    torch.testing.assert_close(again.latents, state.latents, rtol=1e-4, atol=1e-5)
    assert torch.equal(again.num_latents, state.num_latents)


def test_annotation_and_searches_draw_with_it(colar, questions):
    """Continuations of a prefix differ, and their answers do not depend on which problems are annotated together."""
    from latent_tts.reward import LatentRewardModel

    engine, golds = RolloutEngine(colar, NativeGaussian(), max_answer_tokens=3), [1.0] * len(questions)
    together = annotate(engine, questions, golds, num_rollouts=2, num_continuations=2)
    alone = annotate(engine, questions[:1], golds[:1], num_rollouts=2, num_continuations=2)
    assert torch.equal(alone.values[0].isnan(), together.values[0].isnan())
    assert torch.equal(alone.values[0].nan_to_num(), together.values[0].nan_to_num())
    scorer = LatentRewardModel.from_backbone(colar, head="mlp").eval()
    for search in (BeamSearch(2, 2), ParticleFiltering(4)):
        found = search.search(engine, scorer, questions[:3], SEED)
        assert found.texts[:1] == search.search(engine, scorer, questions[:1], SEED).texts


@pytest.mark.parametrize("kind", ["coconut", "codi", "colar"])
def test_models_without_a_deviation_are_refused(kind, tiny_backbone):
    with pytest.raises(UserError, match=f"this {kind} checkpoint has none"):
        RolloutEngine(tiny_backbone(kind, "llama"), NativeGaussian())


def test_noise_that_needs_no_deviation_works_on_any_head(tiny_backbone, questions):
    engine = RolloutEngine(tiny_backbone("colar", "llama"), AdditiveGaussianNoise(0.1), max_answer_tokens=2)
    assert engine.rollout(questions[:1], num_rollouts=2).latents.shape[:2] == (1, 2)


@pytest.mark.parametrize("temperature", [-0.1, float("nan"), float("inf")])
def test_impossible_temperatures_are_refused(temperature):
    with pytest.raises(UserError, match="temperature must be a finite number and not negative"):
        NativeGaussian(temperature)
