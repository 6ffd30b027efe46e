"""Heads of the reward model: hidden states at the latent positions, (R, T, D), to one score a step, (R, T).

Every head is causal: the score of step t depends on steps 1..t only, so scores grow step by step in a search. A further head
is a class here, made from the width D, that says whether it looks back at earlier steps, and a line in `HEADS`; options,
checkpoints and tests find it there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention


class Head(nn.Module):
    """What every head is: called with hidden states (R, T, D), it gives scores (R, T)."""

    needs_history: ClassVar[bool] = False
    """Whether the score of a step depends on the hidden states of earlier steps."""


class LinearHead(Head, nn.Linear):
    """A linear read-out of each step, the published head (keys ``weight`` and ``bias``)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)
        nn.init.normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        # A sum per row, which is summed alike in every batch; a matrix product may not be.
        return (hidden * self.weight[0]).sum(dim=-1) + self.bias


class MLPHead(Head):
    """One hidden layer of the model's width, on each step alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, width)
        self.out = LinearHead(width)

    def forward(self, hidden: Tensor) -> Tensor:
        scores: Tensor = self.out(gelu(self.up(hidden)))
        return scores


class AttentionHead(Head):
    """Step t looks back over the hidden states of steps 1..t and reads a linear score from itself plus what it found."""

    needs_history = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = LinearHead(width)

    def forward(self, hidden: Tensor) -> Tensor:
        query, key, value = self.query(hidden), self.key(hidden), self.value(hidden)
        scores: Tensor = self.out(hidden + scaled_dot_product_attention(query, key, value, is_causal=True))
        return scores


HEADS: dict[str, type[Head]] = {"linear": LinearHead, "mlp": MLPHead, "attention": AttentionHead}

if TYPE_CHECKING:
    HeadName = str
else:
    HeadName = Literal[tuple(HEADS)]  # the choices that a command line shows
