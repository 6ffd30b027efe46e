"""Answer tokens drawn by their probability, with a temperature and a nucleus (top-p, arXiv 1904.09751), instead of arg-max.

    logits z (V,)  ->  p = softmax(z / temperature)  ->  the smallest set of most probable tokens with mass top_p or more,
    of equally probable ones the lower ids  ->  p of the set, divided by its mass

A token is the first whose cumulated probability, in the order of token ids, exceeds a uniform number; that number is a
function of the row's key and the token's place in the answer. The order of ids makes the draw steady: two tokens whose
probabilities are equal up to rounding do not change places.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from latent_tts.errors import UserError
from latent_tts.seeding import fold_in, uniform, widest_float

_ANSWER_SALT = 1 << 43  # apart from the small numbers that steps, children and sites are folded in with
_ROWS_AT_A_TIME = 64  # rows whose scores are in memory at once: (64, V)


@dataclass(frozen=True)
class AnswerSampler:
    """Draws answer tokens; without one the engine takes the most probable token at every place."""

    temperature: float = 1.0
    """Logits are divided by it; above 0. Below 1 likely tokens become likelier."""
    top_p: float = 1.0
    """Mass of the most probable tokens that are drawn from, above 0 and at most 1; 1 draws from all of them."""

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise UserError(
                f"The temperature of an answer sampler must be a finite number above 0, got {self.temperature}; leave the "
                "answer sampler out for the most probable token."
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must lie above 0 and be at most 1, got {self.top_p}: it is a share of probability.")

    @property
    def label(self) -> str:
        """What reports call it, with its parameters."""
        return f"answers drawn, temperature {self.temperature:g}, top-p {self.top_p:g}"

    def log_probs(self, logits: Tensor) -> Tensor:
        """Log-probabilities of all tokens: logits (..., V) to (..., V) float32, -inf outside the nucleus."""
        scaled = logits.float() / self.temperature
        if self.top_p < 1:
            scaled = scaled.masked_fill(~self._nucleus(scaled), float("-inf"))
        return scaled.log_softmax(dim=-1)

    def log_prob(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities (...) of tokens (...) under logits (..., V), -inf where a token is outside the nucleus."""
        return self.log_probs(logits).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)

    def draw(self, logits: Tensor, keys: Tensor, place: int) -> Tensor:
        """Tokens (R,) from logits (R, V).

        Args:
            logits: Vocabulary scores of R rows.
            keys: (R,) int64, the rows' random streams.
            place: Which token of the answer this is, from 0.
        """
        wide = widest_float(logits.device)
        cumulated = self.log_probs(logits).to(wide).exp_().cumsum(dim=-1)  # (R, V)
        draws = uniform(fold_in(fold_in(keys, _ANSWER_SALT), place), ()).to(logits.device, wide)
        total = cumulated[:, -1:]
        tokens = torch.searchsorted(cumulated, draws.unsqueeze(-1) * total, right=True)
        # Where rounding takes a draw to the total, the last token with a probability is meant.
        return torch.minimum(tokens, (cumulated < total).sum(dim=-1, keepdim=True)).squeeze(-1)

    def choose(self, scores: Callable[[Tensor], Tensor], hidden: Tensor, keys: Tensor, place: int) -> Tensor:
        """Tokens (R,) after hidden states (R, D), of which ``scores`` makes logits (R', V), some rows at a time."""
        rows = zip(hidden.split(_ROWS_AT_A_TIME), keys.split(_ROWS_AT_A_TIME), strict=True)
        return torch.cat([self.draw(scores(some), of_them, place) for some, of_them in rows])

    def _nucleus(self, scaled: Tensor) -> Tensor:
        """The smallest set of most probable tokens with mass top_p or more: (..., V) to (..., V) bool."""
        ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
        mass = ordered.softmax(dim=-1, dtype=widest_float(scaled.device))
        before = mass.cumsum(dim=-1) - mass
        return torch.zeros_like(scaled, dtype=torch.bool).scatter(-1, order, before < self.top_p)
