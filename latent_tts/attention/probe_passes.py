"""The passes of a probe as the rest of the project makes them: rolled out, packed, and trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from latent_tts.attention.own_attention import PromptCache
from latent_tts.attention.packed import packed_attention, packed_position_ids
from latent_tts.attention.passes import decoder_pass

STEPS = 5  # thoughts of a rollout
WAITS = 2  # the thought that a row is made to wait for, where the kind of backbone lets rows wait


class RefusedError(Exception):
    """A model that serves for nothing; says why, as what a sentence about it goes on with."""


@dataclass
class Sample:
    """Two prompts, two rollouts of each, and the hidden states that the model itself gives.

    Attributes:
        prompts: Embeddings of each prompt, (L_p, D).
        thoughts: (2, 2, T, D).
        wanted: Hidden states of the whole sequence of a rollout, by problem and member, (L_p + T, D).
        tolerance: Largest error of a state that is rounding, as a share of its norm.
    """

    prompts: list[Tensor]
    thoughts: Tensor
    wanted: list[list[Tensor]]
    tolerance: float


def _padded(sample: Sample) -> tuple[Tensor, Tensor]:
    """The prompts padded on the right, (2, L, D), and where they are real, (2, L) bool."""
    embeds = torch.nn.utils.rnn.pad_sequence(sample.prompts, batch_first=True)
    lengths = torch.tensor([len(prompt) for prompt in sample.prompts], device=embeds.device)
    return embeds, torch.arange(embeds.shape[1], device=embeds.device) < lengths.unsqueeze(1)


def rollout_passes(model: PreTrainedModel, sample: Sample, rows_wait: bool) -> list[Tensor]:
    """The prompt pass, a fork, thoughts one by one, and two positions at once, as `RolloutEngine` has them."""
    embeds, mask = _padded(sample)
    positions = torch.arange(embeds.shape[1], device=embeds.device).expand(mask.shape)
    recorded = PromptCache(model)
    prompt = decoder_pass(model, embeds, positions, None, recorded).last_hidden_state
    if not recorded.layers or any(getattr(layer, "keys", None) is None for layer in recorded.layers):
        raise RefusedError("does not keep keys and values of every layer, which rollouts of one prompt share")
    cache = recorded.as_prefix(mask).repeat(2)
    step = mask.sum(dim=1).repeat_interleave(2).unsqueeze(1)  # (4, 1)
    rows, states = sample.thoughts.flatten(0, 1), []
    stays = torch.tensor([[False], [rows_wait]] * 2, device=embeds.device)
    for first, last in [*((i, i + 1) for i in range(STEPS - 2)), (STEPS - 2, STEPS)]:
        waiting = stays & (first == WAITS)
        cache = cache.extended(last - first, ~waiting if rows_wait and first == WAITS else None)
        offsets = torch.arange(last - first, device=step.device)
        states.append(decoder_pass(model, rows[:, first:last], step + offsets, None, cache).last_hidden_state)
        step = step + (last - first) - waiting.long()
    return _whole_sequences(mask, prompt, torch.cat(states, dim=1), rows_wait)


def _whole_sequences(mask: Tensor, prompt: Tensor, thoughts: Tensor, rows_wait: bool) -> list[Tensor]:
    """Prompts' states (2, L, D) and thoughts' (4, T, D), without padding and waiting: (L_p + T, D) per rollout."""
    sequences = []
    for row, states in enumerate(thoughts):
        kept = torch.cat([states[:WAITS], states[WAITS + 1 :]]) if rows_wait and row % 2 else states
        sequences.append(torch.cat([prompt[row // 2][mask[row // 2]], kept]))
    return sequences


def packed_passes(model: PreTrainedModel, sample: Sample) -> list[Tensor]:
    """All rollouts of a prompt behind one copy of it, as `LatentRewardModel` is trained."""
    embeds, mask = _padded(sample)
    inputs = torch.cat([embeds, sample.thoughts.flatten(1, 2)], dim=1)
    attention = packed_attention(mask, 2, STEPS, model=model)
    states = decoder_pass(model, inputs, packed_position_ids(mask, 2, STEPS), **attention).last_hidden_state
    return _whole_sequences(
        mask, states[:, : embeds.shape[1]], states[:, embeds.shape[1] :].reshape(4, STEPS, -1), False
    )


def training_passes(model: PreTrainedModel, sample: Sample) -> list[Tensor]:
    """Blocks of columns behind each other, each padded on the right, as `latent_tts.training.differentiable` has them."""
    embeds, mask = (part.repeat_interleave(2, dim=0) for part in _padded(sample))
    rows, cache, states = sample.thoughts.flatten(0, 1), DynamicCache(config=model.config), []
    blocks = [
        (embeds, mask),
        *((rows[:, t : t + 1], mask[:, :1]) for t in range(2)),
        (rows[:, 2:], mask[:, :1].expand(-1, 3)),
    ]
    seen = mask[:, :0]
    for inputs, real in blocks:
        seen = torch.cat([seen, real], dim=1)
        positions = (seen.cumsum(dim=1) - 1).clamp(min=0)[:, -real.shape[1] :]
        states.append(decoder_pass(model, inputs, positions, seen, cache).last_hidden_state)
    return _whole_sequences(mask[::2], states[0][::2], torch.cat(states[1:], dim=1), False)
