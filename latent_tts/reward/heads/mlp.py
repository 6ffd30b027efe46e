"""A read-out with one hidden layer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import gelu

from latent_tts.reward.heads.base import Head
from latent_tts.reward.heads.linear import LinearHead


class MLPHead(Head):
    """One hidden layer of the model's width, on each step alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, width)
        self.out = LinearHead(width)

    def forward(self, hidden: Tensor) -> Tensor:
        scores: Tensor = self.out(gelu(self.up(hidden)))
        return scores
