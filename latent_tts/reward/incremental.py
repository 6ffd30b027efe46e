"""Scoring step by step, for search: prompts are encoded once, rows fork and reorder without anything being re-encoded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from latent_tts.attention.shared_prefix import SharedPrefixCache

if TYPE_CHECKING:
    from latent_tts.reward.model import LatentRewardModel


@dataclass(frozen=True)
class RewardState:
    """R rows that have been fed the same number of latents; the rows of a problem are contiguous (R = P * G)."""

    cache: SharedPrefixCache
    prompt_lengths: Tensor  # (P,) long
    history: Tensor | None  # (R, t, D) hidden states at the latent positions, kept where the head looks back

    @property
    def num_rows(self) -> int:
        return self.cache.num_rows

    @property
    def num_steps(self) -> int:
        """Latents fed so far."""
        return self.cache.length

    def select(self, index: Tensor) -> RewardState:
        """Rows by their numbers, (P', G'): keeps, repeats and reorders; the rows of a new group share one problem."""
        index = index.to(self.prompt_lengths.device)
        history = None if self.history is None else self.history[index.flatten()]
        lengths = self.prompt_lengths[index[:, 0] // self.cache.group_size]
        return RewardState(self.cache.select(index), lengths, history)

    def repeat(self, times: int) -> RewardState:
        """Every row becomes ``times`` neighbouring rows."""
        history = None if self.history is None else self.history.repeat_interleave(times, dim=0)
        return replace(self, cache=self.cache.repeat(times), history=history)


def start_state(model: LatentRewardModel, prompt_ids: Tensor, prompt_mask: Tensor) -> RewardState:
    """Encodes right-padded prompts, (P, L), into a state of one row per problem."""
    model._check_length(prompt_ids.shape[1], 1)
    cache = DynamicCache()
    positions = torch.arange(prompt_ids.shape[1], device=prompt_ids.device).expand_as(prompt_ids)
    model.transformer(
        inputs_embeds=model.transformer.get_input_embeddings()(prompt_ids),
        attention_mask=None,  # padding is on the right, where no real token looks
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )
    mask = None if bool(prompt_mask.all()) else prompt_mask
    return RewardState(SharedPrefixCache.from_prompt(cache, mask), prompt_mask.sum(dim=1), None)


def extend(model: LatentRewardModel, state: RewardState, latents: Tensor) -> tuple[RewardState, Tensor]:
    """Feeds every row Q further latents, (R, Q, D); returns the new state and the scores of those steps, (R, Q)."""
    model._check_width(latents.shape[-1])
    rows, steps, _ = latents.shape
    if rows != state.num_rows:
        raise ValueError(f"got latents for {rows} rows, the state has {state.num_rows}; select or repeat it first")
    model._check_length(int(state.prompt_lengths.max()) + state.num_steps, steps)
    cache = state.cache.rewind(
        state.num_steps
    )  # shares the buffers until this pass writes, so the old state stays valid
    first = state.prompt_lengths.repeat_interleave(cache.group_size) + state.num_steps  # (R,)
    cache.begin_pass(steps)
    hidden = model.transformer(
        inputs_embeds=latents.to(model.dtype),
        attention_mask=None,  # the cache knows who sees whom
        position_ids=first.unsqueeze(1) + torch.arange(steps, device=first.device),
        past_key_values=cache,
        use_cache=True,
        shared_prefix=cache,
    ).last_hidden_state  # (R, Q, D)
    if not model.classifier.needs_history:
        return RewardState(cache, state.prompt_lengths, None), model.read(hidden)
    history = hidden if state.history is None else torch.cat([state.history, hidden], dim=1)
    return RewardState(cache, state.prompt_lengths, history), model.read(history)[:, -steps:]
