"""No randomness."""

from latent_tts.sampling.base import Sampler


class Deterministic(Sampler):
    """No randomness: every rollout is the greedy one."""

    @property
    def label(self) -> str:
        return "greedy"
