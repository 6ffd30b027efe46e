"""Rows in the middle of being scored: what a search forks and reorders without anything being encoded again."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from latent_tts.attention.shared_prefix import SharedPrefixCache


@dataclass(frozen=True)
class RewardState:
    """R rows that have been fed the same number of latents; the rows of a problem are contiguous (R = P * G).

    Attributes:
        cache: Everything fed so far; it shares its buffers with the states before it until one of them is extended.
        prompt_lengths: (P,) long, tokens of the prompts.
        history: (R, t, D) hidden states at the latent positions, kept where the head looks back.
    """

    cache: SharedPrefixCache
    prompt_lengths: Tensor
    history: Tensor | None

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
