"""The spread that the model itself predicts for its thoughts (CoLaR trained by likelihood, arXiv 2505.16552)."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Normal

from latent_tts.backbones.base import LatentBackbone
from latent_tts.backbones.colar import Colar
from latent_tts.errors import UserError
from latent_tts.sampling.base import Sampler, check_scale
from latent_tts.seeding import fold_in, normal


class NativeGaussian(Sampler):
    """The distribution a CoLaR was trained to predict: h_t ~ N(mean, (temperature * std)^2), both from its latent head.

    Args:
        temperature: Factor on the predicted deviation; 0 gives the greedy rollout.

    Raises:
        UserError: ``temperature`` is negative or no finite number.
    """

    predicted_deviation = True

    def __init__(self, temperature: float = 1.0) -> None:
        check_scale("temperature", temperature, "the factor on the predicted deviation")
        self.temperature = temperature

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    @property
    def label(self) -> str:
        return f"the model's own Gaussian, temperature {self.temperature:g}"

    def check(self, backbone: LatentBackbone) -> None:
        if not (isinstance(backbone, Colar) and backbone.lt_head.log_std is not None):
            raise UserError(
                f"NativeGaussian draws from the deviation that a CoLaR's latent head predicts, and this {backbone.kind} "
                "checkpoint has none (no lt_head.log_std): use AdditiveGaussianNoise or MonteCarloDropout."
            )

    def next_latent(self, backbone: LatentBackbone, hidden: Tensor, keys: Tensor, step: Tensor) -> Tensor:
        assert isinstance(backbone, Colar)
        mean, std = backbone.latent_gaussian(hidden)
        noise = normal(fold_in(keys, step), (mean.shape[-1],)).to(mean.dtype)
        return mean + self.temperature * std * noise

    def distribution(self, backbone: LatentBackbone, hidden: Tensor) -> Normal:
        if self.temperature == 0:
            return super().distribution(backbone, hidden)
        assert isinstance(backbone, Colar)
        mean, std = backbone.latent_gaussian(hidden)
        return Normal(mean.float(), self.temperature * std.float(), validate_args=False)
