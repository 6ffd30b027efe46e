"""The cached, padded, differentiable forward equals a naive one that feeds one row at a time and caches nothing."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from latent_tts.engine.engine import RolloutEngine
from latent_tts.training.coconut_curriculum import Curriculum, build_sequences
from latent_tts.training.differentiable import collate, greedy_texts, token_losses
from tests.conftest import QUESTIONS
from tests.training import addition


@pytest.fixture(params=["gpt2", "llama"])
def backbone(request, tiny_backbone):
    return tiny_backbone("coconut", request.param, num_latents=3)


def sequences_at(backbone, stages):
    def encode(texts):
        return backbone.tokenizer(texts, add_special_tokens=False)["input_ids"]

    examples = [addition(i) for i in range(len(stages))]
    curriculum = Curriculum(latent_stages=2, latents_per_step=2)
    return build_sequences(
        examples, stages, curriculum, backbone.encode_prompts, encode, backbone.end_of_thought_id, backbone.eos_token_id
    )


def naive_losses(backbone, sequence):
    """Every latent costs a pass over the whole sequence so far: the definition, word for word."""
    embeds = backbone.embed(torch.tensor([sequence.prompt_ids]))
    for _ in range(sequence.num_latents):
        hidden = backbone.model.base_model(inputs_embeds=embeds).last_hidden_state
        embeds = torch.cat([embeds, hidden[:, -1:]], dim=1)
    tail = torch.tensor([sequence.tail_ids])
    logits = backbone.model(inputs_embeds=torch.cat([embeds, backbone.embed(tail)], dim=1)).logits
    return cross_entropy(logits[0, embeds.shape[1] : -1], tail[0, 1:], reduction="none")


def gradients(backbone, losses):
    backbone.zero_grad()
    losses.sum().backward()
    return torch.cat([p.grad.flatten() for p in backbone.parameters()])


@pytest.mark.parametrize("stages", [[0, 0, 0], [2, 2, 2], [0, 1, 2, 3]], ids=["written", "latent", "mixed"])
def test_losses_and_gradients_equal_the_naive_forward(backbone, stages):
    sequences = sequences_at(backbone, stages)
    batched = token_losses(backbone, collate(sequences, backbone.pad_token_id, "cpu"))
    naive = torch.cat([naive_losses(backbone, sequence) for sequence in sequences])
    torch.testing.assert_close(batched, naive, atol=1e-4, rtol=1e-4)
    expected = gradients(backbone, naive)
    torch.testing.assert_close(gradients(backbone, batched), expected, atol=1e-3 * expected.abs().max(), rtol=1e-3)


def test_padding_and_other_rows_do_not_enter_a_row(backbone):
    sequences = sequences_at(backbone, [2, 1, 3, 0, 2])
    alone = [token_losses(backbone, collate([s], backbone.pad_token_id, "cpu")) for s in sequences]
    together = token_losses(backbone, collate(sequences, backbone.pad_token_id, "cpu"))
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_gradient_reaches_the_prompt_through_every_latent(backbone):
    """Cutting the graph at the latents would leave another gradient, so the latents do carry some."""
    sequences = sequences_at(backbone, [2, 2])
    full = gradients(backbone, token_losses(backbone, collate(sequences, backbone.pad_token_id, "cpu")))
    backbone.next_latent = lambda hidden: hidden.detach()
    cut = gradients(backbone, token_losses(backbone, collate(sequences, backbone.pad_token_id, "cpu")))
    assert not torch.allclose(full, cut, rtol=1e-2)


def test_greedy_texts_equal_the_rollout_engine(backbone):
    expected = RolloutEngine(backbone, max_answer_tokens=6).rollout(QUESTIONS, num_rollouts=1).texts
    assert greedy_texts(backbone, QUESTIONS, num_latents=3, max_new_tokens=6) == [texts[0] for texts in expected]
