"""How a rollout is made different from the next: one sampler a file, all behind the interface of ``base``, and one for
the tokens of answers.

To add one: write its file, name it in ``SAMPLERS``. Options, help, settings in records and labels in reports follow.
"""

from latent_tts.sampling.additive_gaussian_noise import AdditiveGaussianNoise
from latent_tts.sampling.answer_sampler import AnswerSampler
from latent_tts.sampling.base import PassNoise, PromptSharing, Sampler
from latent_tts.sampling.deterministic import Deterministic
from latent_tts.sampling.monte_carlo_dropout import MonteCarloDropout
from latent_tts.sampling.native_gaussian import NativeGaussian
from latent_tts.sampling.relative_gaussian_noise import RelativeGaussianNoise
from latent_tts.sampling.rollout_dropout import RolloutDropout
from latent_tts.sampling.singular_value_perturbation import SingularValuePerturbation

SAMPLERS: dict[str, type[Sampler]] = {
    sampler.__name__: sampler
    for sampler in (
        AdditiveGaussianNoise,
        Deterministic,
        MonteCarloDropout,
        NativeGaussian,
        RelativeGaussianNoise,
        RolloutDropout,
        SingularValuePerturbation,
    )
}

__all__ = [
    "SAMPLERS",
    "AdditiveGaussianNoise",
    "AnswerSampler",
    "Deterministic",
    "MonteCarloDropout",
    "NativeGaussian",
    "PassNoise",
    "PromptSharing",
    "RelativeGaussianNoise",
    "RolloutDropout",
    "Sampler",
    "SingularValuePerturbation",
]
