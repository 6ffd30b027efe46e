"""Diversity of the rollouts of a problem: the mean pairwise cosine distance between their latents, step by step."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from latent_tts.errors import UserError
from latent_tts.metrics.exact_sum import PARTS, exact_parts, exact_total
from latent_tts.seeding import widest_float


def step_diversity(latents: Tensor, num_latents: Tensor | None = None) -> Tensor:
    """Mean over pairs of rollouts of 1 - cos, at each step of one problem; between 0 and n / (n - 1) for n rollouts.

    No pair is formed: with unit vectors u_i of the n rollouts that have the step, 1 - cos(u_i, u_j) is half of
    |u_i - u_j|^2, and its mean over pairs is the unbiased variance sum_i |u_i - mean(u)|^2 / (n - 1). This is the
    closed form through the norm of the sum of the unit vectors, without its cancellation where rollouts nearly agree.
    A latent of norm 0 has cosine 0 with everything, which adds (number of such) / n.

    Args:
        latents: (N, T, D).
        num_latents: (N,) how many of the T steps each rollout thought; None for all.

    Returns:
        (T,) float64 where the device has it; NaN at a step that fewer than 2 rollouts reached.
    """
    if latents.ndim != 3:
        raise UserError(f"latents have shape {tuple(latents.shape)}: one problem's must be (rollouts, steps, width)")
    steps = torch.arange(latents.shape[1], device=latents.device)
    mask = torch.ones_like(latents[..., 0]).bool() if num_latents is None else steps < num_latents[:, None].to(steps)
    wide = widest_float(latents.device)
    count = mask.sum(0).to(wide)  # (T,)
    latents = torch.where(mask[..., None], latents, 0).to(wide)
    norm = latents.norm(dim=-1, keepdim=True)
    unit = latents / torch.where(norm > 0, norm, 1.0)  # (N, T, D)
    centred = unit - mask[..., None] * (unit.sum(0) / count.clamp_min(1)[:, None])
    zeros = (mask & (norm[..., 0] == 0)).sum(0)
    diversity = centred.square().sum((0, 2)) / (count - 1).clamp_min(1) + zeros / count.clamp_min(1)
    return torch.where(count >= 2, diversity, torch.nan)


def _diversity_update(per_step: Tensor, num_steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Exact sums (T, 3) and counts (T,) per step, and of the problems' means over steps (3,) and ()."""
    if per_step.ndim != 2 or per_step.shape[1] > num_steps:
        needed = f"(problems, at most {num_steps} steps)"
        raise UserError(f"diversities have shape {tuple(per_step.shape)}: they must be {needed}")
    per_step = torch.nn.functional.pad(per_step.double(), (0, num_steps - per_step.shape[1]), value=torch.nan)
    mean = per_step.nanmean(1)  # (P,), NaN for a problem without any pair
    sums, means = exact_parts(per_step.nan_to_num(0.0)).sum(0), exact_parts(mean.nan_to_num(0.0)).sum(0)
    return sums, (~per_step.isnan()).sum(0), means, (~mean.isnan()).sum()


def _diversity_compute(
    step_sums: Tensor, step_counts: Tensor, mean_sum: Tensor, mean_count: Tensor
) -> dict[str, Tensor]:
    return {
        "mean": exact_total(mean_sum) / mean_count.cpu(),
        "per_step": exact_total(step_sums) / step_counts.cpu(),
    }


class Diversity(Metric):
    """Diversity averaged over problems: {"mean": (), "per_step": (T,)}.

    `per_step` averages each step over the problems that have it; `mean` averages the problems' own means over their
    steps, each problem counting once however long it thinks. NaN where nothing was counted (N = 1).

    Args:
        num_steps: T, the largest number of latents a rollout can have.
    """

    full_state_update = False
    step_sums: Tensor
    step_counts: Tensor
    mean_sum: Tensor
    mean_count: Tensor

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.num_steps = num_steps
        shapes = {"step_sums": (num_steps, PARTS), "step_counts": (num_steps,), "mean_sum": (PARTS,), "mean_count": ()}
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, per_step: Tensor) -> None:
        """Add P problems: (P, T') with T' <= T, rows from `step_diversity`, NaN at steps that count nothing."""
        found = _diversity_update(per_step, self.num_steps)
        step_sums, step_counts, mean_sum, mean_count = (part.to(self.step_sums.device) for part in found)
        self.step_sums += step_sums
        self.step_counts += step_counts
        self.mean_sum += mean_sum
        self.mean_count += mean_count

    def compute(self) -> dict[str, Tensor]:
        """{"mean": (), "per_step": (T,)}, float64."""
        return _diversity_compute(self.step_sums, self.step_counts, self.mean_sum, self.mean_count)
