"""Additive Gaussian noise (AGN) on the latent embeddings (arXiv 2510.07745)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Normal

from latent_tts.backbones.base import LatentBackbone
from latent_tts.sampling.base import Sampler, check_scale
from latent_tts.seeding import fold_in, normal


class AdditiveGaussianNoise(Sampler):
    """AGN: h_t + eps with eps ~ N(0, sigma^2 I), on every latent embedding before it is fed.

    Args:
        sigma: Standard deviation of the noise, in the units of the embeddings (0.5 to 0.7 suits GPT-2-sized COCONUT,
            0.01 to 0.03 a 1B Llama); 0 gives the greedy rollout.

    Raises:
        UserError: ``sigma`` is negative or no finite number.
    """

    def __init__(self, sigma: float = 0.5) -> None:
        check_scale("sigma", sigma, "the standard deviation of the noise")
        self.sigma = sigma

    @property
    def is_greedy(self) -> bool:
        return self.sigma == 0

    @property
    def label(self) -> str:
        return f"additive Gaussian noise, sigma {self.sigma:g}"

    def perturb(self, latents: Tensor, keys: Tensor, step: Tensor) -> Tensor:
        if self.sigma == 0:
            return latents
        noise = normal(fold_in(keys, step), (latents.shape[-1],))
        return latents + self.sigma * noise.to(latents.dtype)

    def distribution(self, backbone: LatentBackbone, hidden: Tensor) -> Normal:
        if self.sigma == 0:
            return super().distribution(backbone, hidden)
        mean = backbone.next_latent(hidden).float()
        return Normal(mean, torch.full_like(mean, self.sigma), validate_args=False)
