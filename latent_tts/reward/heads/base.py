"""What the reward model asks of a head."""

from __future__ import annotations

from typing import ClassVar

from torch import nn


class Head(nn.Module):
    """What every head is: called with hidden states (R, T, D), it gives scores (R, T)."""

    needs_history: ClassVar[bool] = False
    """Whether the score of a step depends on the hidden states of earlier steps."""
