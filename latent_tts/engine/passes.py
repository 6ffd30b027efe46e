"""Passes through the backbone: over prompts, and over the next positions of rows, each with the sampler's noise in its phase."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from latent_tts.attention.own_attention import PromptCache
from latent_tts.attention.padding import pad_right
from latent_tts.backbones.base import LatentBackbone
from latent_tts.engine.state import ThoughtState
from latent_tts.sampling import Sampler


class Passes:
    """Runs a backbone over what states of rows are to read next.

    Args:
        backbone: The latent reasoning model.
        sampler: Says which passes are random.
    """

    def __init__(self, backbone: LatentBackbone, sampler: Sampler) -> None:
        self.backbone, self.sampler = backbone, sampler

    def over_prompts(self, state: ThoughtState, prompts: list[list[int]], max_answer_tokens: int) -> ThoughtState:
        """The prompt pass, one row per prompt given, with room for the thoughts and answers to come.

        Prompts are padded on the right, where no real token looks: the pass needs no mask, only what comes after it does.
        """
        backbone = self.backbone
        # Of prompts of one token, which is left for the rows to feed, a padded column stays.
        ids, mask = pad_right(prompts, backbone.pad_token_id, backbone.device, min_width=1)
        lengths = mask.sum(dim=1)
        positions = torch.arange(ids.shape[1], device=backbone.device).expand_as(ids)
        recorded = PromptCache(backbone.model)
        with self.sampler.attached(backbone) as noise:
            noise.switch("prompt", state.keys, positions - lengths.unsqueeze(-1))
            hidden = backbone.last_hidden(backbone.embed(ids), None, positions, recorded)
        last = hidden[torch.arange(len(prompts), device=backbone.device), lengths - 1]
        slots = state.lead + backbone.num_latents + max_answer_tokens  # the last token is chosen, not fed
        padded = any(len(prompt) < ids.shape[1] for prompt in prompts)
        cache = recorded.as_prefix(mask if padded else None, slots)
        return replace(state, cache=cache, hidden=last)

    def over(
        self, inputs: Tensor, offsets: Tensor, state: ThoughtState, phase: str, real: Tensor | None = None
    ) -> ThoughtState:
        """The state after a pass over inputs (R, Q, D), at offsets (R,) or (R, Q) from the prompt's end."""
        assert state.cache is not None
        offsets = offsets.view(inputs.shape[0], -1)
        positions = (state.prompt_lengths.unsqueeze(-1) + offsets).clamp_(min=0)
        cache = state.cache.extended(inputs.shape[1], real)
        with self.sampler.attached(self.backbone) as noise:
            noise.switch(phase, state.keys, offsets)
            hidden = self.backbone.last_hidden(inputs, None, positions, cache)
        return replace(state, cache=cache, hidden=hidden[:, -1])
