"""How weights are moved: AdamW, and a learning rate that rises, stays and falls. The same options for every training."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.optim import AdamW

from latent_tts.errors import UserError


@dataclass(frozen=True)
class Optimization:
    """AdamW and the course of its learning rate."""

    lr: float = 1e-4
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Momentum terms of AdamW."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises from 0."""
    warmup_share: float = 0.0
    """The same as a share of all optimizer steps; the longer of the two counts."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after the warm-up: it stays, or falls to 0 along a line or half a cosine."""
    decay_share: float = 1.0
    """Last share of all optimizer steps over which it falls; it never begins before the warm-up has ended."""
    reset: Literal["never", "epoch", "stage"] = "never"
    """When AdamW forgets its momenta and warms up again: never, with every epoch, or with every stage of a curriculum."""

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise UserError(f"lr is the peak learning rate and must be above 0, got {self.lr}.")
        if not 0.0 <= self.warmup_share < 1.0 or self.warmup_steps < 0:
            raise UserError(
                f"warmup_share must be in [0, 1) and warmup_steps at least 0, got {self.warmup_share} and {self.warmup_steps}."
            )
        if not 0.0 < self.decay_share <= 1.0:
            raise UserError(f"decay_share is a share of the training and must be in (0, 1], got {self.decay_share}.")

    @property
    def needs_length(self) -> bool:
        """Whether the learning rate depends on how long the training is."""
        return self.schedule != "constant" or self.warmup_share > 0

    def lr_factor(self, step: int, total_steps: float, warmup_start: int = 0) -> float:
        """Factor of the learning rate at a step (from 0).

        Args:
            step: Optimizer steps taken so far.
            total_steps: Those of the whole training; not looked at where `needs_length` is false.
            warmup_start: The step at which the (latest) warm-up began.

        Raises:
            UserError: The length is needed and not known.
        """
        if not self.needs_length:
            return _rise(step - warmup_start, self.warmup_steps)
        if math.isinf(total_steps):
            raise UserError(
                "The learning rate depends on the length of the training: give --trainer.max_epochs or --trainer.max_steps."
            )
        warmup = max(self.warmup_steps, round(self.warmup_share * total_steps))
        rise = _rise(step - warmup_start, warmup)
        if self.schedule == "constant":
            return rise
        begin = max((1.0 - self.decay_share) * total_steps, float(warmup))
        left = min(1.0, max(0.0, (total_steps - step) / max(total_steps - begin, 1.0)))  # 1 until `begin`, 0 at the end
        return rise * (left if self.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left))

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> AdamW:
        """AdamW in one kernel, over the parameters that are trained; Lightning may clip their gradients."""
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        adamw = AdamW(trained, lr=self.lr, weight_decay=self.weight_decay, betas=self.betas, fused=True)
        # Lightning refuses to clip gradients of an optimizer that can undo a loss scale by itself; here there is no loss scale.
        adamw._step_supports_amp_scaling = False
        return adamw


def _rise(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / max(warmup, 1))
