"""Heads of the reward model: hidden states at the latent positions, (R, T, D), to one score a step, (R, T).

Every head is causal: the score of step t depends on steps 1..t only, so scores grow step by step in a search. A further head
is a file here with a class, made from the width D, that says whether it looks back at earlier steps, and a line in `HEADS`;
options, checkpoints and tests find it there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from latent_tts.reward.heads.attention import AttentionHead
from latent_tts.reward.heads.base import Head
from latent_tts.reward.heads.linear import LinearHead
from latent_tts.reward.heads.mlp import MLPHead

HEADS: dict[str, type[Head]] = {"linear": LinearHead, "mlp": MLPHead, "attention": AttentionHead}

if TYPE_CHECKING:
    HeadName = str
else:
    HeadName = Literal[tuple(HEADS)]  # the choices that a command line shows

__all__ = ["HEADS", "AttentionHead", "Head", "HeadName", "LinearHead", "MLPHead"]
