"""GRPO's loss equals a loop over rollouts, actions and dimensions, and its signs and silences are those of the formula."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError
from latent_tts.sampling import AdditiveGaussianNoise, Deterministic, NativeGaussian
from latent_tts.sampling.answer_sampler import AnswerSampler
from latent_tts.training.colar import Columns
from latent_tts.training.grpo import (
    Divergences,
    Experience,
    LogProbs,
    Policy,
    answer_tokens,
    divergences,
    experience_of,
    group_advantages,
    grpo_terms,
    policy_on,
    token_log_probs,
)
from tests.conftest import QUESTIONS

SAMPLERS = {"native": NativeGaussian(temperature=0.7), "fixed": AdditiveGaussianNoise(sigma=0.2)}
ANSWERS = AnswerSampler(temperature=0.8, top_p=0.9)
REWARDS = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])  # the second group is all right


@pytest.fixture
def backbone(tiny_backbone):
    """Its end-of-text token is one that it often writes, so that answers differ in length."""
    backbone = tiny_backbone("colar", "llama", num_latents=3, latent_log_std=True, latent_embedding_std=0.3)
    drawn = RolloutEngine(backbone, SAMPLERS["native"], max_answer_tokens=4).rollout(QUESTIONS[:3], 3)
    backbone.eos_token_id = int(drawn.answer_ids[:, :, 1].flatten().mode().values)
    return backbone


def drawn_by(backbone, sampler):
    rollouts = RolloutEngine(backbone, sampler, max_answer_tokens=4).rollout(QUESTIONS[:3], 3, seed=1)
    with torch.inference_mode():
        rollouts.num_latents[0, 1] = 2  # one that thought less
        rollouts.latents[0, 1, 2:] = 0
    return rollouts, experience_of(backbone, backbone.encode_prompts(QUESTIONS[:3]), rollouts, REWARDS)


def disturb(backbone) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in backbone.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)


def gradient(backbone, loss):
    backbone.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in backbone.parameters() if p.grad is not None])


def slow_log_probs(backbone, sampler, question, latents, answer):
    """The log-probability of every action of one rollout, each by a pass over what came before it."""
    fed = list(backbone.embed(torch.tensor(backbone.encode_prompts([question])[0])))
    actions = []

    def last_hidden():
        return backbone.model.base_model(inputs_embeds=torch.stack(fed).unsqueeze(0)).last_hidden_state[0, -1]

    for latent in latents:
        inner = backbone.lt_head.fc(last_hidden())
        mean = backbone.lt_head.mean(inner) * backbone.latent_embedding_std
        std = [sampler.sigma] * len(mean) if isinstance(sampler, AdditiveGaussianNoise) else None
        if std is None:
            std = 0.7 * backbone.lt_head.log_std(inner).exp() * backbone.latent_embedding_std
        density = []
        for d in range(len(mean)):
            spread = torch.as_tensor(std[d])
            density.append(-((latent[d] - mean[d]) ** 2) / (2 * spread**2) - (spread * math.sqrt(2 * math.pi)).log())
        actions.append(density)
        fed.append(latent)
    fed.append(backbone.embed(torch.tensor(backbone.end_of_thought_id)))
    for token in answer:
        actions.append([slow_answer(backbone.logits(last_hidden()))[token]])
        fed.append(backbone.embed(torch.tensor(token)))
    return actions


def slow_answer(logits):
    """Log-probabilities after temperature 0.8 and the smallest set that holds 0.9; a token outside is its further member."""
    scaled = logits / 0.8
    order = sorted(range(len(scaled)), key=lambda token: -float(scaled[token]))
    kept, mass, probabilities = [], 0.0, scaled.softmax(-1)
    for token in order:
        kept.append(token)
        mass += float(probabilities[token])
        if mass >= 0.9:
            break
    return [scaled[t] - scaled[kept if t in kept else [*kept, t]].logsumexp(-1) for t in range(len(scaled))]


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_loss_and_gradient_equal_a_loop_over_every_draw(backbone, sampler):
    """The policy has moved since the rollouts, so that some ratios are clipped; rewards 1 0 0 give advantages sqrt(2) and
    -1 / sqrt(2), rewards 0 1 1 their negatives, and the group of three right answers gives nothing."""
    rollouts, experience = drawn_by(backbone, sampler)
    with torch.no_grad():
        old = policy_on(backbone, sampler, ANSWERS, experience).log_probs
    before: dict[tuple[int, int], list[Any]] = {(b, n): [] for b in (0, 2) for n in range(3)}
    for b, n in before:
        latents, answer = rollouts.latents[b, n, : rollouts.num_latents[b, n]].clone(), rollouts.answer_ids[b, n]
        with torch.no_grad():
            before[b, n] = slow_log_probs(backbone, sampler, QUESTIONS[b], latents, answer_tokens(answer, backbone))
    disturb(backbone)
    up, down = math.sqrt(2), -1 / math.sqrt(2)
    advantages = {(0, 0): up, (0, 1): down, (0, 2): down, (2, 0): -up, (2, 1): -down, (2, 2): -down}
    expected, was_clipped = [], 0
    for (b, n), advantage in advantages.items():
        latents, answer = rollouts.latents[b, n, : rollouts.num_latents[b, n]].clone(), rollouts.answer_ids[b, n]
        now = slow_log_probs(backbone, sampler, QUESTIONS[b], latents, answer_tokens(answer, backbone))
        terms = []
        for draws, earlier in zip(now, before[b, n], strict=True):
            term = torch.zeros(())
            for new, was in zip(draws, earlier, strict=True):
                ratio = (new - was).exp()
                held = min(max(float(ratio), 0.8), 1.2)
                pessimistic = ratio * advantage if float(ratio) * advantage <= held * advantage else held * advantage
                was_clipped += not torch.is_tensor(pessimistic)
                term = term - pessimistic
            terms.append(term + 0.3 * (1 if len(draws) > 1 else 2))
        expected.append(torch.stack(terms).mean())
    new = policy_on(backbone, sampler, ANSWERS, experience).log_probs
    divergence = Divergences(torch.ones(len(new.latents)), 2 * torch.ones_like(new.tokens))
    actual = grpo_terms(new, old, experience, clip=0.2, divergence=divergence, kl_weight=0.3)
    assert was_clipped > 0 and len({len(actions) for actions in before.values()}) > 1
    torch.testing.assert_close(actual, torch.stack(expected), atol=1e-3, rtol=1e-3)
    slow = gradient(backbone, torch.stack(expected).sum())
    again = policy_on(backbone, sampler, ANSWERS, experience).log_probs
    fast = gradient(backbone, grpo_terms(again, old, experience, 0.2).sum())
    torch.testing.assert_close(fast, slow, atol=1e-3 * float(slow.abs().max()), rtol=1e-2)


# Expectations ---------------------------------------------------------------------------------------------------------

MEAN = torch.tensor([0.3, -0.5, 0.1])
LOGITS = torch.tensor([1.0, 0.2, -0.3, 0.7, -3.0])


def estimated_gradients(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What `count` rollouts of one thought and one token teach, of a policy with a mean (3,) and logits (5,): the mean of
    their terms' gradients. A rollout's advantage is its thought's first dimension, and 1 more with token 3."""
    generator = torch.Generator().manual_seed(seed)
    mean, logits = MEAN.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    thoughts = MEAN + 0.4 * torch.randn(count, 3, generator=generator)
    keys = torch.randint(1 << 40, (count,), generator=generator)
    tokens = ANSWERS.draw(LOGITS.expand(count, -1), keys, place=0)
    columns = Columns.of([[1]] * count, [1] * count, [[2, int(token)] for token in tokens], pad_id=0)
    experience = Experience(columns, thoughts, thoughts[:, 0] + (tokens == 3).float())
    new = LogProbs(
        torch.distributions.Normal(mean, 0.4).log_prob(thoughts),
        token_log_probs(ANSWERS, logits.expand(count, -1), tokens),
    )
    grpo_terms(new, LogProbs(*(part.detach() for part in new)), experience).mean().backward()
    assert mean.grad is not None and logits.grad is not None
    return mean.grad, logits.grad


def expected_gradients() -> tuple[torch.Tensor, torch.Tensor]:
    """Half of minus the gradient of the expected advantage (a term is the mean over two actions): E[h_1] = mean_1, and the
    enumerated probability of token 3 in the nucleus."""
    logits = LOGITS.clone().requires_grad_()
    torch.stack(slow_answer(logits))[3].exp().backward()
    assert logits.grad is not None
    return torch.tensor([-0.5, 0.0, 0.0]), -0.5 * logits.grad


@pytest.mark.slow
def test_the_policy_gradient_is_right_on_average_with_an_error_that_falls_as_the_root_of_the_number():
    errors = []
    for count in (100, 1600):
        estimates = [torch.cat(estimated_gradients(count, seed)) for seed in range(40)]
        gaps = torch.stack(estimates) - torch.cat(expected_gradients())
        errors.append(float(gaps.square().mean().sqrt()))
        assert (gaps.mean(dim=0).abs() < 4 * gaps.std(dim=0) / 40**0.5 + 1e-6).all()
    assert 3.0 < errors[0] / errors[1] < 5.3  # 4 = sqrt(1600 / 100)


@pytest.mark.slow
def test_a_divergence_is_the_mean_log_ratio_with_an_error_that_falls_as_the_root_of_the_number():
    """At D = 768, means 0.1 deviations apart: 0.1^2 / 2 = 0.005 a dimension, 3.84 for the thought; for tokens, enumerated."""
    normal = torch.distributions.Normal
    mine, other = normal(torch.zeros(1, 768), 2.0), normal(torch.full((1, 768), 0.2), 2.0)
    here, there = LOGITS.log_softmax(-1), (LOGITS * 0.5).log_softmax(-1)
    none = LogProbs(torch.zeros(1, 768), torch.zeros(1))
    found = divergences(Policy(none, mine, here.unsqueeze(0)), Policy(none, other, there.unsqueeze(0)))
    assert float(found.latents) == pytest.approx(768 * 0.005, rel=1e-5)
    assert float(found.tokens) == pytest.approx(sum(float(p.exp() * (p - q)) for p, q in zip(here, there, strict=True)))
    torch.manual_seed(0)
    errors = []
    for count in (25, 400):
        draws = mine.mean + 2.0 * torch.randn(60, count, 768)
        estimates = (mine.log_prob(draws) - other.log_prob(draws)).sum(-1).mean(-1)
        errors.append(float((estimates - found.latents).square().mean().sqrt()))
    assert errors[1] < 0.3 and 3.0 < errors[0] / errors[1] < 5.3


def test_a_token_that_has_left_the_nucleus_counts_as_its_further_member():
    logits, tokens = LOGITS.expand(5, -1), torch.arange(5)
    expected = torch.stack(slow_answer(LOGITS))
    assert ANSWERS.log_prob(logits, tokens).isinf().any()
    torch.testing.assert_close(token_log_probs(ANSWERS, logits, tokens), expected)


def test_the_divergence_holds_a_moved_policy_back(backbone):
    """Its gradient points away from the reference: a step down it brings the policy nearer."""
    _, experience = drawn_by(backbone, SAMPLERS["native"])
    with torch.no_grad():
        reference = policy_on(backbone, SAMPLERS["native"], ANSWERS, experience)
    assert all(float(part.abs().max()) < 1e-4 for part in divergences(reference, reference))
    disturb(backbone)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=1e-7)
    away = torch.cat(divergences(policy_on(backbone, SAMPLERS["native"], ANSWERS, experience), reference)).sum()
    away.backward()
    optimizer.step()
    after = torch.cat(divergences(policy_on(backbone, SAMPLERS["native"], ANSWERS, experience), reference)).sum()
    assert float(away) > float(after) > 0


def test_before_the_first_update_every_ratio_is_one(backbone):
    """Then a rollout's term is - A times its draws (D a thought, one a token) for each of its actions."""
    _, experience = drawn_by(backbone, SAMPLERS["native"])
    new = policy_on(backbone, SAMPLERS["native"], ANSWERS, experience).log_probs
    old = LogProbs(*(part.detach() for part in new))
    columns = experience.columns
    thoughts, tokens = columns.thoughts.sum(dim=1), experience.answers.sum(dim=1)
    terms = grpo_terms(new, old, experience)
    assert all(torch.equal(one, other) for one, other in zip(new, old, strict=True))
    draws = (thoughts * backbone.hidden_size + tokens) / (thoughts + tokens)
    torch.testing.assert_close(terms.detach(), -experience.advantages * draws)


def test_without_an_advantage_there_is_no_gradient(backbone):
    _, experience = drawn_by(backbone, SAMPLERS["native"])
    experience = replace(experience, advantages=torch.zeros(experience.num_rollouts))
    new = policy_on(backbone, SAMPLERS["native"], ANSWERS, experience).log_probs
    assert not gradient(backbone, grpo_terms(new, new, experience).sum()).any()


def test_groups_that_are_all_right_or_all_wrong_teach_nothing(backbone):
    rollouts, experience = drawn_by(backbone, SAMPLERS["native"])
    assert experience.num_rollouts == 6  # of the first and the third group
    prompts = backbone.encode_prompts(QUESTIONS[:3])
    for reward in (0.0, 1.0):
        assert experience_of(backbone, prompts, rollouts, torch.full((3, 3), reward)) is None


def test_a_step_makes_right_thoughts_likelier_and_wrong_ones_less_likely(backbone):
    sampler = SAMPLERS["native"]
    _, experience = drawn_by(backbone, sampler)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=1e-3)
    old = policy_on(backbone, sampler, ANSWERS, experience).log_probs
    grpo_terms(old, old, experience).sum().backward()
    optimizer.step()
    now = policy_on(backbone, sampler, ANSWERS, experience).log_probs
    gain = torch.cat([(now.latents - old.latents).sum(dim=-1), now.tokens - old.tokens])
    rows = torch.arange(6).unsqueeze(1).expand_as(experience.answers)
    of_action = torch.cat([rows[experience.columns.thoughts], rows[experience.answers]])
    change = torch.stack([gain[of_action == row].mean() for row in range(6)])
    assert (change * experience.advantages).sum() > 0


def test_padding_and_other_groups_do_not_enter_a_rollout(backbone):
    rollouts, experience = drawn_by(backbone, SAMPLERS["native"])
    together = policy_on(backbone, SAMPLERS["native"], ANSWERS, experience).log_probs
    alone = []
    for b in (0, 2):
        rows = SimpleNamespace(**{k: getattr(rollouts, k)[b : b + 1] for k in ("latents", "num_latents", "answer_ids")})
        one = experience_of(backbone, backbone.encode_prompts(QUESTIONS[b : b + 1]), rows, REWARDS[b : b + 1])  # type: ignore[arg-type]
        alone.append(policy_on(backbone, SAMPLERS["native"], ANSWERS, one).log_probs)  # type: ignore[arg-type]
    torch.testing.assert_close(together.latents, torch.cat([a.latents for a in alone]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.tokens, torch.cat([a.tokens for a in alone]), atol=1e-4, rtol=1e-4)


def test_advantages_by_hand():
    """Rewards 1 0 0 0: mean 1/4, deviation sqrt(3)/4, so advantages sqrt(3) and -1/sqrt(3)."""
    found = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]))
    expected = torch.tensor([[math.sqrt(3), *[-1 / math.sqrt(3)] * 3], [0.0] * 4, [0.0] * 4])
    torch.testing.assert_close(found, expected)


def test_answers_end_with_their_end_of_text():
    backbone = SimpleNamespace(eos_token_ids=(9, 3))
    assert answer_tokens(torch.tensor([4, 5, 3, 9, 9]), backbone) == [4, 5, 3]  # type: ignore[arg-type]
    assert answer_tokens(torch.tensor([4, 5, 9, 9, 9]), backbone) == [4, 5, 9]  # type: ignore[arg-type]
    assert answer_tokens(torch.tensor([4, 5, 6]), backbone) == [4, 5, 6]  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", [Deterministic(), NativeGaussian(0.0), AdditiveGaussianNoise(0.0)], ids=str)
def test_thoughts_without_a_density_are_refused(backbone, sampler):
    _, experience = drawn_by(backbone, SAMPLERS["native"])
    with pytest.raises(UserError, match="no density, which GRPO needs"):
        policy_on(backbone, sampler, ANSWERS, experience)
