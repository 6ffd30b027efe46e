"""What a reward model refuses to score, each in one sentence."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PretrainedConfig

from latent_tts.errors import UserError


def check_latents(latents: Tensor, num_questions: int) -> None:
    """Refuses latents that are not one block of rollouts for each question."""
    if latents.ndim != 4 or len(latents) != num_questions:
        raise UserError(
            f"Latents to score have the shape (problems, rollouts, steps, hidden size); got {tuple(latents.shape)} for "
            f"{num_questions} question(s)."
        )


def check_width(width: int, hidden_size: int) -> None:
    """Refuses latents of another model."""
    if width != hidden_size:
        raise UserError(
            f"The latents have hidden size {width}, the reward model has {hidden_size}: it was made for another backbone; "
            "load the reward model that belongs to this one, or train one."
        )


def check_length(config: PretrainedConfig, prompt: int, steps: int) -> None:
    """Refuses prompts, of so many tokens, that leave no positions for the latents."""
    limit = getattr(config, "max_position_embeddings", None)
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
            f"{str(dtype).removeprefix('torch.')}; load it in float32, or train it again."
        )
