"""The last step of a rollout: its latest thought and the end-of-thought token are fed, then the answer is decoded."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from latent_tts.engine.compaction import COMPACT_BELOW, Batch
from latent_tts.engine.passes import Passes
from latent_tts.engine.state import ThoughtState
from latent_tts.sampling import AnswerSampler


class AnswerDecoder:
    """Decodes answers of rows that have thought; rows whose answer has ended leave the batch.

    Args:
        passes: Runs the backbone.
        max_answer_tokens: Answers are cut off after this many tokens.
        answer_sampler: How tokens are drawn; ``None`` takes the most probable one at every place.
    """

    def __init__(self, passes: Passes, max_answer_tokens: int, answer_sampler: AnswerSampler | None) -> None:
        self.passes, self.backbone = passes, passes.backbone
        self.max_answer_tokens, self.answer_sampler = max_answer_tokens, answer_sampler

    def decode(self, state: ThoughtState) -> tuple[Tensor, Tensor, Tensor]:
        """Answer tokens (R, A), padded, their numbers (R,), and whether everything on the way was finite, (R,) bool."""
        backbone, limit = self.backbone, self.max_answer_tokens
        ids = torch.full((state.num_rows, limit), backbone.pad_token_id, device=backbone.device)
        num_tokens, finite = torch.zeros_like(state.num_latents), state.finite.clone()
        batch = Batch(self.end_thought(state))
        for position in range(limit):
            hidden = batch.state.hidden
            assert hidden is not None
            tokens = self.next_tokens(hidden, batch.state.keys, position)
            ids[batch.rows, position] = tokens.masked_fill(~batch.wanted, backbone.pad_token_id)
            num_tokens[batch.rows] += batch.wanted
            finite[batch.rows] &= hidden.isfinite().all(dim=-1) | ~batch.wanted
            batch.wanted = batch.wanted & ~backbone.ends_text(tokens) & finite[batch.rows]
            share = batch.share_of(batch.wanted)
            if share == 0 or position == limit - 1:
                break
            batch.state = replace(batch.state, hidden=None, pending=backbone.embed(tokens))
            if share < COMPACT_BELOW:
                batch = batch.keep(batch.wanted)
            assert batch.state.pending is not None
            offsets = batch.state.num_latents + 1 + position
            batch.state = self.passes.over(batch.state.pending.unsqueeze(1), offsets, batch.state, "answer")
        return ids.masked_fill(~finite.unsqueeze(-1), backbone.pad_token_id), num_tokens, finite

    def next_tokens(self, hidden: Tensor, keys: Tensor, place: int) -> Tensor:
        """The tokens (R,) at a place of the answers, after hidden states (R, D): the most probable ones, or drawn."""
        if self.answer_sampler is None:
            return self.backbone.most_likely(hidden)
        return self.answer_sampler.choose(self.backbone.steady_logits, hidden, keys, place)

    def end_thought(self, state: ThoughtState) -> ThoughtState:
        """Feeds the latest thought, where it is still pending, and the end-of-thought token in one pass."""
        backbone = self.backbone
        end = torch.full_like(state.num_latents, backbone.end_of_thought_id)
        inputs, offsets, real = backbone.embed(end).unsqueeze(1), state.num_latents.unsqueeze(-1), None
        if state.hidden is None:
            assert state.pending is not None
            inputs = torch.cat([state.pending.unsqueeze(1).to(inputs.dtype), inputs], dim=1)  # (R, 2, D)
            offsets = torch.cat([offsets - 1, offsets], dim=1)
            if backbone.dynamic:
                real = torch.stack([~state.finished, torch.ones_like(state.finished)], dim=1)
        return self.passes.over(inputs, offsets, state, "answer", real)
