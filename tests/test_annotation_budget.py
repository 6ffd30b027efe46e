"""The estimates behind the table of annotation costs, against draws whose true values are known."""

from __future__ import annotations

import torch

from benchmarks.annotation_budget import noise_and_signal


def test_noise_and_signal_are_those_of_known_values():
    """True values 0.5 - 0.2 or 0.5 + 0.2, evenly: the variance of one outcome is 0.3 * 0.7, that between rollouts 0.2^2.

    The variance between N = 16 rollouts is taken with N - 1, so it has no bias; 1,000 problems and M = 20 leave an error of
    about 1 %.
    """
    generator = torch.Generator().manual_seed(0)
    problems, rollouts, steps, continuations = 1000, 16, 3, 20
    true = 0.5 + 0.2 * (2 * torch.randint(2, (problems, rollouts, steps), generator=generator) - 1)
    values = torch.binomial(torch.full_like(true, continuations), true, generator=generator) / continuations
    values[..., -1] = 1.0  # the last prefix has its rollout's own answer, which is no estimate
    num_latents = torch.full((problems, rollouts), steps)
    single, between = noise_and_signal(values, num_latents, continuations)
    torch.testing.assert_close((single, between), (0.21, 0.04), rtol=0.03, atol=0)


def test_values_without_differences_have_no_signal():
    values = torch.full((5, 4, 3), 0.5)
    torch.testing.assert_close(noise_and_signal(values, torch.full((5, 4), 3), 4), (1 / 3, 0.0))
