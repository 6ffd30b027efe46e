"""Activations that are computed again in the backward pass: the gradients of those that are kept, with fewer of them kept."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from latent_tts.backbones.dropout import set_dropout
from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError
from latent_tts.sampling import NativeGaussian
from latent_tts.sampling.answer_sampler import AnswerSampler
from latent_tts.training.activations import checkpoint_blocks
from latent_tts.training.colar import colar_losses, compress
from latent_tts.training.grpo import experience_of, grpo_terms, policy_on
from tests.test_reward import QUESTIONS, tiny_latents, tiny_reward_model
from tests.training import MAKERS, addition, write_tiny_model

BATCH = [addition(i) for i in range(4)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("activations") / "model")


def backbone_loss(kind: str, model: Path) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    module: Any = MAKERS[kind](model)
    if kind == "coconut":
        return module, lambda one: one.losses_at(BATCH, [2, 1, 2, 0]).sum()
    return module, lambda one: one.validation_losses(BATCH).sum()


def reward_loss(model: Path) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    latents, num_latents = tiny_latents()
    mask = torch.arange(latents.shape[2]) < num_latents.unsqueeze(-1)
    return tiny_reward_model(), lambda one: one(*one.encode_prompts(QUESTIONS), latents, mask).square().sum()


def colar_loss(backbone: Any) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """Tokens and merged embeddings."""
    examples = compress(BATCH, 2, backbone, "{question}###", key="")

    def loss(one: Any) -> Tensor:
        found = colar_losses(one, examples, 2)
        return found.tokens.sum() + found.latents.sum()

    return backbone, loss


def grpo_loss(backbone: Any) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """Of rollouts of the unmoved policy, whose first and last group has right and wrong ones."""
    sampler, answers = NativeGaussian(0.7), AnswerSampler()
    drawn = RolloutEngine(backbone.eval(), sampler, max_answer_tokens=4).rollout(QUESTIONS, 3)
    rewards = torch.eye(len(QUESTIONS), 3)
    experience = experience_of(backbone, backbone.encode_prompts(QUESTIONS), drawn, rewards)
    assert experience is not None
    with torch.no_grad():
        old = policy_on(backbone, sampler, answers, experience).log_probs

    def loss(one: Any) -> Tensor:
        return grpo_terms(policy_on(one, sampler, answers, experience).log_probs, old, experience, 0.2).sum()

    return backbone, loss


def gradients(module: nn.Module, loss: Callable[[Any], Tensor], seed: int = 0) -> tuple[dict[str, Tensor], int]:
    """Of every weight that has one, with dropout from a seed; and the bytes that are kept for the backward pass."""
    module.zero_grad()
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        with saved_tensors_hooks(note, lambda tensor: tensor):
            total = loss(module)
        total.backward()
    found = {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}
    return found, sum(kept.values())


@pytest.mark.parametrize("kind", ["coconut", "codi", "cot", "colar", "grpo", "reward model"])
def test_gradients_are_those_of_kept_activations_to_the_bit(kind, model, tiny_backbone):
    if kind in ("colar", "grpo"):
        backbone = tiny_backbone("colar", "llama", num_latents=3, latent_log_std=True, latent_embedding_std=0.3)
        whole, loss = colar_loss(backbone) if kind == "colar" else grpo_loss(backbone)
    else:
        whole, loss = reward_loss(model) if kind == "reward model" else backbone_loss(kind, model)
    set_dropout(whole.train(), 0.1)
    again = deepcopy(whole)
    checkpoint_blocks(again)
    (wanted, kept), (found, kept_again) = gradients(whole, loss), gradients(again, loss)
    assert wanted.keys() == found.keys() and any(one.any() for one in wanted.values())
    others, _ = gradients(deepcopy(whole), loss, seed=1)
    assert any(not torch.equal(one, others[name]) for name, one in wanted.items()), "no dropout"
    assert all(torch.equal(one, found[name]) for name, one in wanted.items())
    assert kept_again < kept


def test_a_model_without_blocks_is_refused():
    with pytest.raises(UserError, match="finds no transformer blocks"):
        checkpoint_blocks(nn.Linear(2, 2))
