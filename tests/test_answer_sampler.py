"""Drawn answer tokens: their probabilities by enumeration, their frequencies, and that nothing but the row's key enters."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from latent_tts.acceleration.kernels.library import kernels
from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError
from latent_tts.sampling import AdditiveGaussianNoise, AnswerSampler, Deterministic, RolloutDropout
from latent_tts.seeding import fold_in, problem_keys
from tests.naive import naive_rollout

LOGITS = [2.0, -1.0, 0.5, 2.0, 1.0, -3.0]


def enumerated(logits: list[float], temperature: float, top_p: float) -> list[float]:
    """The definition, token by token: tokens by falling probability (lower ids first) until their mass reaches top_p."""
    weights = [math.exp(logit / temperature) for logit in logits]
    probabilities = [weight / sum(weights) for weight in weights]
    kept, mass = set(), 0.0
    for token in sorted(range(len(logits)), key=lambda token: (-probabilities[token], token)):
        if mass < top_p:
            kept.add(token)
            mass += probabilities[token]
    return [p / mass if token in kept else 0.0 for token, p in enumerate(probabilities)]


def keys_of(count: int) -> torch.Tensor:
    return fold_in(problem_keys(0, ["a"]), torch.arange(count))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 1.0])
def test_log_probabilities_by_enumeration(temperature, top_p):
    logits = torch.tensor([LOGITS, LOGITS[::-1]])
    found = AnswerSampler(temperature, top_p).log_probs(logits).exp()
    expected = torch.tensor([enumerated(row, temperature, top_p) for row in logits.tolist()])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    tokens = torch.tensor([0, 5])
    of_tokens = AnswerSampler(temperature, top_p).log_prob(logits, tokens).exp()
    torch.testing.assert_close(of_tokens, expected[[0, 1], tokens], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9), (2.0, 0.6)])
def test_frequencies_of_50_000_draws_are_the_probabilities(temperature, top_p):
    count, expected = 50_000, torch.tensor(enumerated(LOGITS, temperature, top_p))
    drawn = AnswerSampler(temperature, top_p).draw(torch.tensor([LOGITS]).expand(count, -1), keys_of(count), place=3)
    counts = torch.bincount(drawn, minlength=len(LOGITS))
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert (
        stats.chisquare(counts[possible].numpy(), (expected[possible] * count).numpy(), sum_check=False).pvalue > 1e-3
    )


def test_draws_at_two_places_and_of_two_rows_are_independent():
    """Of 20,000 pairs of draws from three equal tokens every pair comes up as often."""
    sampler, logits, keys = AnswerSampler(), torch.zeros(20_000, 3), keys_of(20_001)
    for first, second in (((keys[:-1], 0), (keys[:-1], 1)), ((keys[:-1], 0), (keys[1:], 0))):
        pairs = 3 * sampler.draw(logits, *first) + sampler.draw(logits, *second)
        assert stats.chisquare(torch.bincount(pairs, minlength=9).numpy()).pvalue > 1e-3


def test_the_smallest_mass_leaves_the_first_of_the_most_probable():
    drawn = AnswerSampler(top_p=1e-9).draw(torch.tensor([LOGITS]).expand(100, -1), keys_of(100), 0)
    assert drawn.unique().tolist() == [0]  # tokens 0 and 3 are equally probable


def test_a_draw_never_leaves_the_tokens_that_are_possible():
    """Probability 1 on a token that is followed by impossible ones, whatever the uniform number."""
    logits = torch.full((2000, 50), float("-inf"))
    logits[:, 17] = 0.3
    assert AnswerSampler().draw(logits, keys_of(2000), 0).unique().tolist() == [17]


def test_a_rows_token_is_its_own_whatever_is_drawn_beside_it():
    logits, keys = torch.randn(130, 40, generator=torch.Generator().manual_seed(0)), keys_of(130)
    sampler = AnswerSampler(1.5, 0.8)
    together = sampler.choose(lambda hidden: hidden, logits, keys, 2)  # more rows than are scored at a time
    apart = torch.cat([sampler.draw(logits[i : i + 1], keys[i : i + 1], 2) for i in range(130)])
    assert torch.equal(together, apart)
    assert torch.equal(sampler.choose(lambda hidden: hidden, logits.flip(0), keys.flip(0), 2), together.flip(0))


@pytest.mark.parametrize("kind", ["coconut", "colar"])
def test_batch_size_order_and_number_of_rollouts_change_no_answer(kind, tiny_backbone, questions):
    backbone = tiny_backbone(kind, "llama", num_latents=2)
    engine = RolloutEngine(backbone, AdditiveGaussianNoise(0.2), 5, AnswerSampler(0.8, 0.9))
    whole = engine.rollout(questions[:4], 3, seed=1)
    backwards = engine.rollout(questions[:4][::-1], 5, seed=1)
    assert [row[:3] for row in backwards.texts[::-1]] == whole.texts
    assert engine.rollout(questions[1:2], 3, seed=1).texts == whole.texts[1:2]
    assert whole.texts != RolloutEngine(backbone, AdditiveGaussianNoise(0.2), 5).rollout(questions[:4], 3, seed=1).texts


@torch.no_grad()
def test_first_tokens_of_4_000_rollouts_are_as_frequent_as_a_plain_forward_pass_says(tiny_backbone, questions):
    """One thought, by transformers alone: the prompt, its last hidden state, end-of-thought, and the logits there."""
    backbone = tiny_backbone("coconut", "gpt2", num_latents=1)
    prompt = backbone.embed(torch.tensor(backbone.encode_prompts(questions[2:3])))
    thought = backbone.model.transformer(inputs_embeds=prompt).last_hidden_state[:, -1:]
    end = backbone.embed(torch.tensor([[backbone.end_of_thought_id]]))
    logits = backbone.model(inputs_embeds=torch.cat([prompt, thought, end], dim=1)).logits[0, -1]
    expected = torch.tensor(enumerated(logits.tolist(), 0.7, 0.8))
    rollouts = RolloutEngine(backbone, Deterministic(), 1, AnswerSampler(0.7, 0.8)).rollout(questions[2:3], 4000)
    counts = torch.bincount(rollouts.answer_ids[0, :, 0], minlength=len(expected))
    often = expected * 4000 >= 5
    assert counts[expected == 0].sum() == 0 and often.sum() > 2
    observed = torch.cat([counts[often], counts[~often].sum().view(1)]).double()
    wanted = torch.cat([expected[often], expected[~often].sum().view(1)]).double() * 4000
    some = wanted > 0
    assert stats.chisquare(observed[some].numpy(), wanted[some].numpy(), sum_check=False).pvalue > 1e-3


@pytest.mark.parametrize(
    "noise",
    [Deterministic(), AdditiveGaussianNoise(0.2), RolloutDropout(0.2, scope="prompt+latent+answer")],
    ids=["alone", "with noise", "with dropout"],
)
@pytest.mark.parametrize("kind", ["coconut", "colar"])
def test_drawn_answers_equal_recomputing_everything_for_every_token(kind, noise, tiny_backbone, questions):
    """Answers drawn after the same thoughts, and after thoughts that differ too."""
    backbone, drawing = tiny_backbone(kind, "gpt2"), AnswerSampler(0.8, 0.9)
    rollouts = RolloutEngine(backbone, noise, 4, drawing).rollout(questions[:2], 2, seed=7)
    for b, question in enumerate(questions[:2]):
        for n in range(2):
            ids = naive_rollout(backbone, noise, question, n, 7, 4, drawing).answer_ids
            assert rollouts.answer_ids[b, n].tolist() == ids + [backbone.pad_token_id] * (4 - len(ids))


@pytest.mark.skipif(kernels() is None, reason="no kernels on this machine")
@pytest.mark.parametrize("vocab_size", [271, 150_000])
def test_in_a_frozen_model_on_a_cpu_the_probabilities_of_a_row_are_the_same_to_the_bit_in_any_batch(
    vocab_size, tiny_backbone
):
    """A small matrix, and one that the most probable token is found in by screening."""
    backbone = tiny_backbone("coconut", "llama")
    backbone.model.resize_token_embeddings(vocab_size, mean_resizing=False)
    backbone.freeze()
    hidden, sampler = (
        torch.randn(70, backbone.hidden_size, generator=torch.Generator().manual_seed(1)),
        AnswerSampler(0.8),
    )
    with torch.inference_mode():
        together = sampler.log_probs(backbone.steady_logits(hidden))
        apart = [sampler.log_probs(backbone.steady_logits(hidden[i : i + 1])) for i in range(70)]
        cut = [sampler.log_probs(backbone.steady_logits(part)) for part in hidden.split(13)]
        plain = backbone.logits(hidden)
    assert torch.equal(together, torch.cat(apart)) and torch.equal(together, torch.cat(cut))
    torch.testing.assert_close(together, sampler.log_probs(plain))


@pytest.mark.skipif(kernels() is None, reason="no kernels on this machine")
@pytest.mark.parametrize("kind", ["coconut", "colar"])
def test_answers_drawn_in_a_frozen_model_on_a_cpu_are_the_same_in_any_batch(kind, tiny_backbone, questions):
    backbone = tiny_backbone(kind, "llama", hidden_size=64, intermediate_size=96).freeze()
    engine = RolloutEngine(backbone, AdditiveGaussianNoise(0.5), 12, AnswerSampler(1.3, 0.99))
    whole = engine.rollout(questions, 6, seed=3)
    for i, question in enumerate(questions):
        alone = engine.rollout([question], 4, seed=3)
        assert torch.equal(alone.latents[0], whole.latents[i, :4])
        assert torch.equal(alone.answer_ids[0], whole.answer_ids[i, :4])


def test_near_zero_temperature_is_the_greedy_answer(tiny_backbone, questions):
    backbone = tiny_backbone()
    greedy = RolloutEngine(backbone, max_answer_tokens=4).rollout(questions[:3], 1)
    cold = RolloutEngine(backbone, None, 4, AnswerSampler(temperature=1e-4)).rollout(questions[:3], 1)
    assert cold.texts == greedy.texts


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_temperatures_are_refused(temperature):
    with pytest.raises(UserError, match="temperature of an answer sampler must be a finite number above 0"):
        AnswerSampler(temperature=temperature)


@pytest.mark.parametrize("top_p", [0.0, -0.1, 1.1, float("nan")])
def test_impossible_shares_are_refused(top_p):
    with pytest.raises(UserError, match="top_p must lie above 0 and be at most 1"):
        AnswerSampler(top_p=top_p)


@pytest.mark.parametrize("kind", ["coconut", "colar"])
def test_greedy_thoughts_are_thought_and_billed_once_for_all_drawn_answers(kind, tiny_backbone, questions, monkeypatch):
    """Rows of the passes before the first answer token, and the bill: prompt, thoughts, and the tokens of every answer."""
    backbone = tiny_backbone(kind, "llama", num_latents=3)
    rows, original = [], backbone.last_hidden
    monkeypatch.setattr(
        backbone, "last_hidden", lambda inputs, *args: rows.append(tuple(inputs.shape[:2])) or original(inputs, *args)
    )
    rollouts = RolloutEngine(backbone, Deterministic(), 4, AnswerSampler(0.9)).rollout(questions[:2], 5, seed=1)
    single = RolloutEngine(backbone, Deterministic(), 4, AnswerSampler(0.9)).rollout(questions[:2], 1, seed=1)
    assert [count for count, width in rows if width == 1][:2] == [2, 2] and (10, 2) in rows
    assert torch.equal(single.answer_ids[:, 0], rollouts.answer_ids[:, 0])
    tokens = rollouts.answer_ids != backbone.pad_token_id  # the stop token of these models is the padding
    for i, prompt in enumerate(backbone.encode_prompts(questions[:2])):
        ends = [min(4, int(row.sum()) + 1) for row in tokens[i]]
        assert rollouts.shared_steps[i] == len(prompt) + rollouts.num_latents[i, 0]
        assert rollouts.token_steps[i] == rollouts.shared_steps[i] + sum(ends)
