"""Rows that leave a batch before the others: a smaller rectangle of those that go on, and places for what comes back."""

from __future__ import annotations

import torch
from torch import Tensor

from latent_tts.engine.state import ThoughtState

COMPACT_BELOW = 0.75  # rows that go on are gathered into a smaller batch when their share falls below this


class Batch:
    """Rows on their way through the model, and which row of the whole each one is.

    ``keep`` gathers the rows still wanted. A batch stays a rectangle of problems by rows, so a problem with fewer rows
    left than another is filled up with rows of its own that are no longer ``wanted``.
    """

    def __init__(self, state: ThoughtState, rows: Tensor | None = None, wanted: Tensor | None = None) -> None:
        self.state = state
        self.rows = torch.arange(state.num_rows, device=state.keys.device) if rows is None else rows
        self.wanted = torch.ones_like(state.finished) if wanted is None else wanted

    def share_of(self, mask: Tensor) -> float:
        return float(mask.float().mean())

    def keep(self, mask: Tensor) -> Batch:
        """The rows in the mask, (R,) bool, problems without any left out."""
        if bool(mask.all()):
            return self
        size = self.state.group_size
        per_problem = mask.view(-1, size)
        counts = per_problem.sum(dim=1)
        left = counts.nonzero().squeeze(1)  # problems with rows left
        order = per_problem[left].int().argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
        index = left.unsqueeze(1) * size + order  # (P', G')
        wanted = torch.arange(index.shape[1], device=index.device) < counts[left].unsqueeze(1)
        return Batch(self.state.select(index), self.rows[index.flatten()], wanted.flatten())


class Results:
    """Fixed places for what R rows bring back, in whatever order they finish."""

    def __init__(self, state: ThoughtState, num_latents: int, max_answer_tokens: int, pad_id: int) -> None:
        rows, device = state.num_rows, state.keys.device
        self.latents = state.latents.new_zeros(rows, num_latents, state.latents.shape[2])
        self.num_latents = torch.zeros_like(state.num_latents)
        self.num_tokens = torch.zeros_like(state.num_latents)
        self.finite = torch.ones_like(state.finished)
        self.answer_ids = torch.full((rows, max_answer_tokens), pad_id, device=device)

    def write(self, batch: Batch, answer_ids: Tensor, num_tokens: Tensor, finite: Tensor) -> None:
        rows, wanted = batch.rows[batch.wanted], batch.wanted
        self.latents[rows, : batch.state.step] = batch.state.latents[wanted]
        self.num_latents[rows] = batch.state.num_latents[wanted]
        self.num_tokens[rows] = num_tokens[wanted]
        self.answer_ids[rows] = answer_ids[wanted]
        self.finite[rows] = finite[wanted]
