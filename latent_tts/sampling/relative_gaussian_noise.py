"""Gaussian noise in proportion to the size of the latents, so that one strength suits models of any scale."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Normal

from latent_tts.backbones.base import LatentBackbone
from latent_tts.sampling.base import Sampler, check_scale
from latent_tts.seeding import fold_in, normal, widest_float


class RelativeGaussianNoise(Sampler):
    """h_t + ratio * rms(h_t) * eps with eps ~ N(0, I), on every latent embedding before it is fed.

    rms(h) = sqrt(mean_d h_d^2), so the ratio is noise over signal: the squared length of the noise is ratio^2 times that of the
    latent, on average.

    Args:
        ratio: Standard deviation of the noise, as a share of the latent's root mean square; 0 gives the greedy rollout.

    Raises:
        UserError: ``ratio`` is negative or no finite number.
    """

    def __init__(self, ratio: float = 0.3) -> None:
        check_scale("ratio", ratio, "the noise over the root mean square of a latent")
        self.ratio = ratio

    @property
    def is_greedy(self) -> bool:
        return self.ratio == 0

    @property
    def label(self) -> str:
        return f"Gaussian noise of {self.ratio:g} times the latents' root mean square"

    def perturb(self, latents: Tensor, keys: Tensor, step: Tensor) -> Tensor:
        if self.ratio == 0:
            return latents
        noise = normal(fold_in(keys, step), (latents.shape[-1],))
        return latents + (self.ratio * _rms(latents) * noise).to(latents.dtype)

    def distribution(self, backbone: LatentBackbone, hidden: Tensor) -> Normal:
        if self.ratio == 0:
            return super().distribution(backbone, hidden)
        mean = backbone.next_latent(hidden).float()
        return Normal(mean, (self.ratio * _rms(mean)).expand_as(mean), validate_args=False)


def _rms(latents: Tensor) -> Tensor:
    """Root mean square of latents (..., D): (..., 1) float32, summed up in the widest type so that no order enters."""
    wide = latents.to(widest_float(latents.device))
    return wide.square().mean(dim=-1, keepdim=True).sqrt().float()
