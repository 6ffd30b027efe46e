"""The published head: a linear read-out."""

from __future__ import annotations

from torch import Tensor, nn

from latent_tts.reward.heads.base import Head


class LinearHead(Head, nn.Linear):
    """A linear read-out of each step, the published head (keys ``weight`` and ``bias``)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)
        nn.init.normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        # A sum per row, which is summed alike in every batch; a matrix product may not be.
        return (hidden * self.weight[0]).sum(dim=-1) + self.bias
