"""Rows in the middle of thinking: their random streams, thoughts, and keys and values."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latent_tts.attention.shared_prefix import SharedPrefixCache
from latent_tts.engine.prompts import Prompt
from latent_tts.errors import UserError
from latent_tts.seeding import fold_in


@dataclass
class ThoughtState:
    """R = P * G rows in the middle of thinking; the G rows of a problem are neighbours.

    A state is never changed: what goes on from it is another one, so it may be expanded, answered, selected from and
    rewound any number of times.

    Attributes:
        keys: (R,) int64, random streams.
        prompts: The P prompts.
        prompt_lengths: (R,) int64, tokens of each row's prompt: kept on the device, since every pass asks for them.
        latents: (R, t, D), thoughts so far, as fed; 0 where a row stopped before.
        num_latents: (R,) int64, thoughts so far.
        num_finite: (R,) int64, thoughts before the first with a NaN or an infinity, after which all are fed as 0.
        finished: (R,) bool, rows whose model chose to stop (CoLaR), or which can't go on.
        cache: Everything fed so far; ``None`` before the first thought where every rollout encodes its own prompt.
        hidden: (R, D) after the last position fed; ``None`` while the latest thought is still to be fed.
        pending: (R, D) the embedding to feed next.
        lead: Suffix positions in front of the first thought: 1 where the last prompt token is fed per row, else 0.
    """

    keys: Tensor
    prompts: list[Prompt]
    prompt_lengths: Tensor
    latents: Tensor
    num_latents: Tensor
    num_finite: Tensor
    finished: Tensor
    cache: SharedPrefixCache | None
    hidden: Tensor | None
    pending: Tensor | None
    lead: int = 0

    @classmethod
    def of(cls, prompts: list[Prompt], keys: Tensor, hidden_size: int, dtype: torch.dtype) -> ThoughtState:
        """One row per prompt, with its random stream (P,), before anything has been encoded."""
        device = keys.device
        return cls(
            keys=keys,
            prompts=prompts,
            prompt_lengths=torch.tensor([len(prompt.ids) for prompt in prompts], device=device),
            latents=torch.empty(len(prompts), 0, hidden_size, dtype=dtype, device=device),
            num_latents=torch.zeros_like(keys),
            num_finite=torch.zeros_like(keys),
            finished=torch.zeros_like(keys, dtype=torch.bool),
            cache=None,
            hidden=None,
            pending=None,
        )

    @property
    def step(self) -> int:
        """Latent thoughts of the rows that have not stopped."""
        return self.latents.shape[1]

    @property
    def finite(self) -> Tensor:
        """Rows without a NaN or an infinity in their thoughts: (R,) bool."""
        return self.num_finite == self.num_latents

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

    def with_thought(self, latents: Tensor, finished: Tensor, finite: Tensor) -> ThoughtState:
        """The rows with one thought more, which is still to be fed.

        Args:
            latents: (R, D); a row that is finished, or not finite, is fed 0 in its place.
            finished: (R,) bool, rows that had stopped before.
            finite: (R,) bool, rows without a NaN or an infinity up to this thought.
        """
        latents = latents.masked_fill((finished | ~finite).unsqueeze(-1), 0.0)
        return replace(
            self,
            latents=torch.cat([self.latents, latents.unsqueeze(1)], dim=1),
            num_latents=self.num_latents + (~finished).long(),
            num_finite=self.num_finite + (finite & ~finished).long(),
            finished=finished,
            hidden=None,
            pending=latents,
        )

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
            num_finite=self.num_finite[rows],
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
            num_finite=self.num_finite.clamp(max=step),
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
            num_finite=repeat(self.num_finite),
            finished=repeat(self.finished),
            cache=None if self.cache is None else self.cache.repeat(num_children),
            hidden=None if self.hidden is None else repeat(self.hidden),
            pending=None if self.pending is None else repeat(self.pending),
        )
