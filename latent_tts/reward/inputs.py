"""What a reward model is given to score, or the sentence by which it is refused."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PretrainedConfig

from latent_tts.attention.windows import longest_sequence
from latent_tts.engine.rollouts import Rollouts
from latent_tts.errors import UserError


def what_to_score(
    asked: Rollouts | Sequence[str], latents: Tensor | None, num_latents: Tensor | None
) -> tuple[Sequence[str], Tensor, Tensor]:
    """The questions, the latents (B, N, T, D), and which of them there are, (B, N, T) bool.

    A rollout ends where its latents are no finite numbers any more.

    Raises:
        UserError: The latents are missing, or are not one block of rollouts for each question.
    """
    if isinstance(asked, Rollouts):
        return what_to_score(asked.questions, asked.latents, asked.num_latents)
    if latents is None or isinstance(asked, str):
        raise UserError("What is scored is what the engine returned, or a list of questions and the latents of each.")
    if latents.ndim != 4 or len(latents) != len(asked):
        raise UserError(
            f"Latents to score have the shape (problems, rollouts, steps, hidden size); got {tuple(latents.shape)} for "
            f"{len(asked)} question(s)."
        )
    mask = latents.isfinite().all(dim=-1).cumprod(dim=-1).bool()
    if num_latents is not None:
        steps = torch.arange(latents.shape[2], device=latents.device)
        mask &= steps < num_latents.to(latents.device).unsqueeze(-1)
    return asked, latents, mask


def in_parts(latents: Tensor, size: int | None) -> list[Tensor]:
    """Latents (B, N, T, D) in parts of so many rollouts, the last filled up with copies of rollout N - 1; None: in one part."""
    if size is None:
        return [latents]
    missing = -latents.shape[1] % size
    whole = torch.cat([latents, latents[:, -1:].expand(-1, missing, -1, -1)], dim=1)
    return [whole[:, first : first + size] for first in range(0, whole.shape[1], size)]


def check_width(width: int, hidden_size: int) -> None:
    """Refuses latents of another model."""
    if width != hidden_size:
        raise UserError(
            f"The latents have hidden size {width}, the reward model has {hidden_size}: it was made for another backbone; "
            "load the reward model that belongs to this one, or train one."
        )


def check_length(config: PretrainedConfig, prompt: int, steps: int) -> None:
    """Refuses prompts, of so many tokens, that leave no positions for the latents."""
    limit = longest_sequence(config)
    if limit is not None and prompt + steps > limit:
        raise UserError(
            f"A prompt of {prompt} tokens and {steps} latents do not fit in the reward model's {limit} positions; leave out "
            "the longest questions."
        )


def check_scores(scores: Tensor, dtype: torch.dtype) -> None:
    """Refuses scores that no comparison can be made by."""
    if not bool(scores.isfinite().all()):
        raise UserError(
            "The reward model gives scores that are no finite numbers: its weights are damaged, or too large for "
            f"{str(dtype).removeprefix('torch.')}; load it in float32, or train it again, with a smaller learning rate."
        )
