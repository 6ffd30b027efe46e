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
from latent_tts.training.grpo import (
    LogProbs,
    action_log_probs,
    answer_tokens,
    experience_of,
    group_advantages,
    grpo_terms,
)
from tests.conftest import QUESTIONS

SAMPLERS = {"native": NativeGaussian(temperature=0.7), "fixed": AdditiveGaussianNoise(sigma=0.2)}
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
        density = 0.0
        for d in range(len(mean)):
            spread = torch.as_tensor(std[d])
            density += -((latent[d] - mean[d]) ** 2) / (2 * spread**2) - (spread * math.sqrt(2 * math.pi)).log()
        actions.append(density / len(mean))
        fed.append(latent)
    fed.append(backbone.embed(torch.tensor(backbone.end_of_thought_id)))
    for token in answer:
        actions.append(backbone.logits(last_hidden()).log_softmax(-1)[token])
        fed.append(backbone.embed(torch.tensor(token)))
    return actions


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_loss_and_gradient_equal_a_loop_over_every_action(backbone, sampler):
    """The policy has moved since the rollouts, so that some ratios are clipped; rewards 1 0 0 give advantages sqrt(2) and
    -1 / sqrt(2), rewards 0 1 1 their negatives, and the group of three right answers gives nothing."""
    rollouts, experience = drawn_by(backbone, sampler)
    with torch.no_grad():
        old = action_log_probs(backbone, sampler, experience)
        reference_actions = LogProbs(old.latents - 0.1, old.tokens + 0.2)
    before: dict[tuple[int, int], list[Any]] = {(b, n): [] for b in (0, 2) for n in range(3)}
    for b, n in before:
        latents, answer = rollouts.latents[b, n, : rollouts.num_latents[b, n]].clone(), rollouts.answer_ids[b, n]
        with torch.no_grad():
            before[b, n] = slow_log_probs(backbone, sampler, QUESTIONS[b], latents, answer_tokens(answer, backbone))
    disturb(backbone)
    up, down = math.sqrt(2), -1 / math.sqrt(2)
    advantages = {(0, 0): up, (0, 1): down, (0, 2): down, (2, 0): -up, (2, 1): -down, (2, 2): -down}
    expected, clipped = [], 0
    for (b, n), advantage in advantages.items():
        latents, answer = rollouts.latents[b, n, : rollouts.num_latents[b, n]].clone(), rollouts.answer_ids[b, n]
        now = slow_log_probs(backbone, sampler, QUESTIONS[b], latents, answer_tokens(answer, backbone))
        terms = []
        for position, (new, was) in enumerate(zip(now, before[b, n], strict=True)):
            ratio = (new - was).exp()
            held = min(max(float(ratio), 0.8), 1.2)
            pessimistic = ratio * advantage if float(ratio) * advantage <= held * advantage else held * advantage
            clipped += not torch.is_tensor(pessimistic)
            away = was + (-0.1 if position < len(latents) else 0.2) - new
            terms.append(-pessimistic + 0.3 * (away.exp() - away - 1))
        expected.append(sum(terms) / len(terms))
    new = action_log_probs(backbone, sampler, experience)
    actual = grpo_terms(new, old, experience, clip=0.2, reference=reference_actions, kl_weight=0.3)
    assert clipped > 0 and len({len(actions) for actions in before.values()}) > 1
    torch.testing.assert_close(actual, torch.stack(expected), atol=1e-4, rtol=1e-3)
    slow = gradient(backbone, sum(expected))
    again = action_log_probs(backbone, sampler, experience)
    fast = gradient(backbone, grpo_terms(again, old, experience, 0.2, reference_actions, 0.3).sum())
    torch.testing.assert_close(fast, slow, atol=1e-4 * float(slow.abs().max()), rtol=1e-3)


def test_before_the_first_update_every_ratio_is_one(backbone):
    """Then a rollout's term is - A, and the gradient that of the mean log-probability times - A."""
    _, experience = drawn_by(backbone, SAMPLERS["native"])
    new = action_log_probs(backbone, SAMPLERS["native"], experience)
    old = LogProbs(*(part.detach() for part in new))
    terms = grpo_terms(new, old, experience)
    assert torch.equal(torch.cat(new), torch.cat(old))
    torch.testing.assert_close(terms.detach(), -experience.advantages)


def test_without_an_advantage_there_is_no_gradient(backbone):
    _, experience = drawn_by(backbone, SAMPLERS["native"])
    experience = replace(experience, advantages=torch.zeros(experience.num_rollouts))
    new = action_log_probs(backbone, SAMPLERS["native"], experience)
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
    old = action_log_probs(backbone, sampler, experience)
    grpo_terms(old, old, experience).sum().backward()
    optimizer.step()
    gain = torch.cat(action_log_probs(backbone, sampler, experience)) - torch.cat(old)
    rows = torch.arange(6).unsqueeze(1).expand_as(experience.answers)
    of_action = torch.cat([rows[experience.columns.thoughts], rows[experience.answers]])
    change = torch.stack([gain[of_action == row].mean() for row in range(6)])
    assert (change * experience.advantages).sum() > 0


def test_padding_and_other_groups_do_not_enter_a_rollout(backbone):
    rollouts, experience = drawn_by(backbone, SAMPLERS["native"])
    together = action_log_probs(backbone, SAMPLERS["native"], experience)
    alone = []
    for b in (0, 2):
        rows = SimpleNamespace(**{k: getattr(rollouts, k)[b : b + 1] for k in ("latents", "num_latents", "answer_ids")})
        one = experience_of(backbone, backbone.encode_prompts(QUESTIONS[b : b + 1]), rows, REWARDS[b : b + 1])  # type: ignore[arg-type]
        alone.append(action_log_probs(backbone, SAMPLERS["native"], one))  # type: ignore[arg-type]
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
        action_log_probs(backbone, sampler, experience)
