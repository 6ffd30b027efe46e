"""A read-out that looks back over the thoughts so far."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from latent_tts.reward.heads.base import Head
from latent_tts.reward.heads.linear import LinearHead


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
