"""Rollouts packed behind one prompt give the scores and gradients of rollouts one by one."""

import functools

import pytest
import torch
from torch import Tensor

from latent_tts.attention.packed import packed_attention, packed_attention_mask, packed_position_ids
from latent_tts.backbones import Coconut, Codi, LatentBackbone
from latent_tts.reward import LatentRewardModel
from latent_tts.reward.heads import HEADS
from latent_tts.reward.losses import contrastive_loss
from tests.test_reward import QUESTIONS, tiny_backbone, tiny_latents, tiny_reward_model


def scores_and_gradients(
    model: LatentRewardModel, packed: bool, left: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    latents, num_latents = tiny_latents()
    mask = torch.arange(4) < num_latents.unsqueeze(-1)
    ids, prompt_mask = model.encode_prompts(QUESTIONS)
    if left:
        ids, prompt_mask = to_left(ids, prompt_mask)
    model.zero_grad()
    scores = model(ids, prompt_mask, latents, mask, packed)
    labels = torch.rand(mask.shape, generator=torch.Generator().manual_seed(2))
    contrastive_loss(scores, labels, mask).mean.backward()
    return scores.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def to_left(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    shift = (~mask).sum(dim=1, keepdim=True)
    order = (torch.arange(ids.shape[1]) - shift) % ids.shape[1]
    return ids.gather(1, order), mask.gather(1, order)


@pytest.mark.parametrize(
    ("architecture", "kind", "head"),
    [("gpt2", Coconut, head) for head in HEADS]
    + [("llama", Coconut, head) for head in HEADS]
    + [("gpt2", Codi, "linear")],
)
def test_packed_equals_unpacked(architecture: str, kind: type[LatentBackbone], head: str) -> None:
    model = tiny_reward_model(architecture, head, kind)
    scores, gradients = scores_and_gradients(model, packed=True)
    expected_scores, expected_gradients = scores_and_gradients(model, packed=False)
    torch.testing.assert_close(scores, expected_scores, atol=1e-4, rtol=1e-4)
    assert gradients.keys() == expected_gradients.keys() and len(gradients) == len(list(model.parameters()))
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-5, rtol=1e-4)
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-2


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_packed_training_scores_are_the_scores_of_evaluation(architecture: str) -> None:
    model, (latents, num_latents) = tiny_reward_model(architecture), tiny_latents()
    scores, _ = scores_and_gradients(model, packed=True)
    torch.testing.assert_close(scores, model.score(QUESTIONS, latents, num_latents), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_left_and_right_padding_are_the_same(architecture: str) -> None:
    model = tiny_reward_model(architecture)
    scores, gradients = scores_and_gradients(model, packed=True)
    other_scores, other_gradients = scores_and_gradients(model, packed=True, left=True)
    torch.testing.assert_close(scores, other_scores, atol=1e-4, rtol=1e-4)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, other_gradients[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("chunk_positions", [1, 8], ids=["one rollout a chunk", "two chunks, the second filled up"])
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_chunks_of_rollouts_give_the_same(
    architecture: str, left: bool, chunk_positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three rollouts of four steps, cut into chunks of 1 and 2 rollouts; the prompts have different lengths."""
    model = tiny_reward_model(architecture)
    expected_scores, expected_gradients = scores_and_gradients(model, packed=False, left=left)
    chunked = functools.partial(packed_attention, chunk_positions=chunk_positions)
    assert "packed" in chunked(torch.ones(1, 2, dtype=torch.bool), 3, 4)
    monkeypatch.setattr("latent_tts.reward.model.packed_attention", chunked)
    scores, gradients = scores_and_gradients(model, packed=True, left=left)
    torch.testing.assert_close(scores, expected_scores, atol=1e-4, rtol=1e-4)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-5, rtol=1e-4)


def test_chunks_without_padding_share_one_mask() -> None:
    prompt_mask = torch.ones(2, 3, dtype=torch.bool)
    whole = packed_attention_mask(prompt_mask, 1, 2)
    attention = packed_attention(prompt_mask, 5, 2, chunk_positions=2)["packed"]
    assert attention.num_chunks == 5
    assert torch.equal(attention.prompt_sees, whole[:, :, :3, :3])
    assert torch.equal(attention.chunk_sees, whole[:1, :, 3:])


def test_rollouts_do_not_see_each_other() -> None:
    model, (latents, _) = tiny_reward_model(), tiny_latents()
    ids, prompt_mask = model.encode_prompts(QUESTIONS)
    mask = torch.ones(3, 3, 4, dtype=torch.bool)
    latents.requires_grad_()
    model(ids, prompt_mask, latents, mask)[1, 1, 2].backward()
    assert latents.grad is not None
    touched = latents.grad.abs().sum(-1) > 0  # (3, 3, 4)
    assert touched[1, 1, :3].all() and touched.sum() == 3


def test_mask_and_positions_of_a_small_case() -> None:
    """A prompt of two tokens, padded on the left to three; two rollouts of two steps."""
    prompt_mask = torch.tensor([[False, True, True]])
    assert packed_position_ids(prompt_mask, 2, 2).tolist() == [[0, 0, 1, 2, 3, 2, 3]]
    seen = packed_attention_mask(prompt_mask, 2, 2)[0, 0].int()
    assert seen.tolist() == [
        [1, 0, 0, 0, 0, 0, 0],  # padding sees itself
        [0, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],  # rollout 1
        [0, 1, 1, 1, 1, 0, 0],
        [0, 1, 1, 0, 0, 1, 0],  # rollout 2
        [0, 1, 1, 0, 0, 1, 1],
    ]


def test_a_frozen_backbone_gets_no_gradient_and_its_head_the_same() -> None:
    free = LatentRewardModel.from_backbone(tiny_backbone())
    frozen = LatentRewardModel.from_backbone(tiny_backbone(), frozen=True)
    _, gradients = scores_and_gradients(free, packed=True)
    _, head_only = scores_and_gradients(frozen, packed=True)
    assert head_only.keys() == {"classifier.weight", "classifier.bias"}
    for name, gradient in head_only.items():
        torch.testing.assert_close(gradient, gradients[name])
