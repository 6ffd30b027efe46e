"""Rows in the middle of thinking, and the bookkeeping of rows that leave a batch before the others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latent_tts.attention.shared_prefix import SharedPrefixCache
from latent_tts.errors import UserError
from latent_tts.seeding import fold_in


@dataclass
class ThoughtState:
    """R = P * G rows in the middle of thinking; the G rows of a problem are neighbours.

    Attributes:
        keys: (R,) int64, random streams.
        prompts: Token ids of the P prompts.
        prompt_lengths: (R,) int64, tokens of each row's prompt: kept on the device, since every pass asks for them.
        latents: (R, t, D), thoughts so far, as fed; 0 where a row stopped before.
        num_latents: (R,) int64, thoughts so far.
        finished: (R,) bool, rows whose model chose to stop (CoLaR).
        cache: Everything fed so far; ``None`` before the first thought where every rollout encodes its own prompt.
        hidden: (R, D) after the last position fed; ``None`` while the latest thought is still to be fed.
        pending: (R, D) the embedding to feed next.
        lead: Suffix positions in front of the first thought: 1 where the last prompt token is fed per row, else 0.
    """

    keys: Tensor
    prompts: list[list[int]]
    prompt_lengths: Tensor
    latents: Tensor
    num_latents: Tensor
    finished: Tensor
    cache: SharedPrefixCache | None
    hidden: Tensor | None
    pending: Tensor | None
    lead: int = 0

    @property
    def step(self) -> int:
        """Latent thoughts of the rows that have not stopped."""
        return self.latents.shape[1]

    @property
    def num_problems(self) -> int:
        return len(self.prompts)

    @property
    def num_rows(self) -> int:
        return self.keys.shape[0]

    @property
    def group_size(self) -> int:
        """Rows per problem (G)."""
        return self.num_rows // self.num_problems

    def select(self, index: Tensor) -> ThoughtState:
        """Keeps, repeats or reorders rows: index (P', G') of row numbers, the rows of one new group of one problem.

        Copies of a row go on alike until ``rekey`` or an ``expand`` with children tells them apart.
        """
        index = index.to(self.keys.device)
        rows, problems = index.flatten(), (index[:, 0] // self.group_size).tolist()
        cache = None
        if self.cache is not None:
            shared = self.cache.num_groups == self.num_problems
            cache = self.cache.select(index if shared else rows.unsqueeze(-1))
        return ThoughtState(
            keys=self.keys[rows],
            prompts=[self.prompts[p] for p in problems],
            prompt_lengths=self.prompt_lengths[rows],
            latents=self.latents[rows],
            num_latents=self.num_latents[rows],
            finished=self.finished[rows],
            cache=cache,
            hidden=None if self.hidden is None else self.hidden[rows],
            pending=None if self.pending is None else self.pending[rows],
            lead=self.lead,
        )

    def rewind(self, step: int) -> ThoughtState:
        """The same rows when they had ``step`` thoughts; they share this state's keys and values.

        A row that stopped earlier is returned finished, with the thoughts it had.
        """
        if not 1 <= step <= self.step:
            raise UserError(f"step must lie between 1 and the {self.step} thoughts of this state, got {step}.")
        assert self.cache is not None
        return replace(
            self,
            latents=self.latents[:, :step],
            num_latents=self.num_latents.clamp(max=step),
            finished=self.num_latents < step,
            cache=self.cache.rewind(self.lead + step - 1),
            hidden=None,
            pending=self.latents[:, step - 1],
        )

    def rekey(self, salt: int) -> ThoughtState:
        """The same rows with new random streams, distinct for every row of a problem."""
        slot = torch.arange(self.num_rows, device=self.keys.device) % self.group_size
        return replace(self, keys=fold_in(fold_in(self.keys, salt), slot))

    def fork(self, num_children: int, first_child: int = 0) -> ThoughtState:
        """Every row becomes ``num_children`` neighbouring rows with random streams of their own, by their numbers."""
        child = torch.arange(first_child, first_child + num_children, device=self.keys.device).repeat(self.num_rows)

        def repeat(rows: Tensor) -> Tensor:
            return rows.repeat_interleave(num_children, dim=0)

        return replace(
            self,
            keys=fold_in(repeat(self.keys), child),
            prompt_lengths=repeat(self.prompt_lengths),
            latents=repeat(self.latents),
            num_latents=repeat(self.num_latents),
            finished=repeat(self.finished),
            cache=None if self.cache is None else self.cache.repeat(num_children),
            hidden=None if self.hidden is None else repeat(self.hidden),
            pending=None if self.pending is None else repeat(self.pending),
        )


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
        self.answer_ids = torch.full((rows, max_answer_tokens), pad_id, device=device)

    def write(self, batch: Batch, answer_ids: Tensor, num_tokens: Tensor) -> None:
        rows, wanted = batch.rows[batch.wanted], batch.wanted
        self.latents[rows, : batch.state.step] = batch.state.latents[wanted]
        self.num_latents[rows] = batch.state.num_latents[wanted]
        self.num_tokens[rows] = num_tokens[wanted]
        self.answer_ids[rows] = answer_ids[wanted]
