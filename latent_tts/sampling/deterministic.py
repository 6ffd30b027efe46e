"""No randomness."""

from latent_tts.sampling.base import Sampler


class Deterministic(Sampler):
    """No randomness: every rollout is the greedy one."""

    @property
    def random_thoughts(self) -> bool:
        return False

    @property
    def is_greedy(self) -> bool:
        return True

    @property
    def label(self) -> str:
        return "greedy"
