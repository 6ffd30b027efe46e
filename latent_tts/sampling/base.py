"""What a sampler is: the one who says which latent thought is fed, and which passes are random.

Every draw is a function of the row's key, the position it is for, counted from the end of the prompt, and the site in the
model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, ClassVar

from torch import Tensor
from torch.distributions import Normal

from latent_tts.backbones.base import LatentBackbone
from latent_tts.errors import UserError


class PromptSharing(Enum):
    """How much of an encoded prompt the N rollouts of a problem may attend to one copy of."""

    ALL = "all"  # no pass is random
    ALL_BUT_LAST = "all but last"  # the pass over the last prompt token makes the first thought, at random
    NONE = "none"  # the prompt's pass is random

    def num_shared(self, length: int) -> int:
        """Positions of a prompt of ``length`` tokens that are encoded once for all rollouts."""
        return {PromptSharing.ALL: length, PromptSharing.ALL_BUT_LAST: length - 1, PromptSharing.NONE: 0}[self]

    @property
    def random_pass(self) -> bool:
        """Whether the passes that make thoughts are random, so that every child of a row runs its own."""
        return self is not PromptSharing.ALL


class Sampler:
    """One way to draw different latent thoughts from the same problem."""

    predicted_deviation: ClassVar[bool] = False  # True: draws with the deviation that the latent head predicts

    @property
    def prompt_sharing(self) -> PromptSharing:
        """How much of its encoded prompt a rollout shares with the others of its problem."""
        return PromptSharing.ALL

    @property
    def random_thoughts(self) -> bool:
        """Whether the thoughts of a problem's rollouts differ; where not, they are thought once for all of them."""
        return True

    @property
    def random_answer(self) -> bool:
        """Whether the passes that answer are random too, so that the same thoughts can end in different answers."""
        return False

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn, so that every rollout of a problem is the greedy one."""
        return False

    @property
    def label(self) -> str:
        """What reports call it, with its parameters."""
        return ", ".join([type(self).__name__, *(f"{name} {value}" for name, value in vars(self).items())])

    def check(self, backbone: LatentBackbone) -> None:
        """Raises a ``UserError`` where this sampler can't draw from the backbone."""

    def next_latent(self, backbone: LatentBackbone, hidden: Tensor, keys: Tensor, step: Tensor) -> Tensor:
        """The latent thoughts that are fed after hidden states (R, D); keys and step as in ``perturb``."""
        return self.perturb(backbone.next_latent(hidden), keys, step)

    def perturb(self, latents: Tensor, keys: Tensor, step: Tensor) -> Tensor:
        """What is fed in place of the latents.

        Args:
            latents: (R, D).
            keys: (R,) int64, the rows' random streams.
            step: (R,) int64, which latent thought of its row this is, from 1.
        """
        return latents

    def distribution(self, backbone: LatentBackbone, hidden: Tensor) -> Normal:
        """What ``next_latent`` draws from after hidden states (M, D): (M, D) independent Gaussians, in float32.

        Raises:
            UserError: The thoughts have no density.
        """
        raise UserError(
            f"{self.label} gives latent thoughts no density, which GRPO needs: use NativeGaussian, or AdditiveGaussianNoise "
            "where the latent head predicts no deviation, with a temperature or sigma above 0."
        )

    def log_prob(self, backbone: LatentBackbone, hidden: Tensor, latents: Tensor) -> Tensor:
        """Log-densities (M, D) of the dimensions of thoughts (M, D) that were drawn after hidden states (M, D).

        Raises:
            UserError: The thoughts have no density.
        """
        density: Tensor = self.distribution(backbone, hidden).log_prob(latents.float())
        return density

    @contextmanager
    def attached(self, backbone: LatentBackbone) -> Iterator[PassNoise]:
        """Prepares the backbone for random passes and leaves it as it was on exit."""
        yield PassNoise()

    def settings(self) -> dict[str, Any]:
        """Name and parameters, for records and comparisons of runs."""
        return {"name": type(self).__name__, **vars(self)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in vars(self).items())})"


class PassNoise:
    """The switch of the random sites of a backbone; this one has none."""

    def switch(self, phase: str, keys: Tensor, offsets: Tensor) -> None:
        """Announces the next pass.

        Args:
            phase: ``prompt``, ``latent`` (the pass makes a latent thought) or ``answer``.
            keys: (R,) int64.
            offsets: (R, Q) int64, positions of the pass relative to the first position after the prompt.
        """


def check_scale(name: str, value: float, meaning: str) -> None:
    """Raises a ``UserError`` where a factor on noise is negative or no number."""
    if not (0 <= value < math.inf):
        raise UserError(f"{name} must be a finite number and not negative, got {value}: it is {meaning}.")
