"""One dropout mask per rollout, kept over all its positions: every rollout thinks with a thinned network of its own.

The masks of variational dropout (arXiv 1512.05287): one draw per layer and sequence. A rollout's network is a function of (seed,
problem, rollout) alone, so it can be replayed.
"""

from __future__ import annotations

from torch import Tensor

from latent_tts.backbones.base import LatentBackbone
from latent_tts.sampling.monte_carlo_dropout import DropoutNoise, MonteCarloDropout, Sites
from latent_tts.sampling.random_passes import LayerNoise, Scope
from latent_tts.seeding import fold_in

_MASK_SALT = 1 << 44  # apart from the small numbers that steps, children and sites are folded in with


class RolloutDropout(MonteCarloDropout):
    """Dropout with one mask per rollout and site, the same at all its positions, scaled by 1 / (1 - p).

    A child of a search, or a continuation, draws masks of its own from its fork on.

    Args:
        p: Probability that a feature is dropped.
        sites: ``ffn`` masks the output of every feed-forward sub-layer, ``residual`` that of the attention too.
        scope: Passes with masks on, as for MonteCarloDropout: ``latent`` shares the prompt, ``prompt+latent`` encodes it
            once per rollout, ``prompt+latent+answer`` answers with the same masks too.

    Raises:
        UserError: An option is out of its range.
    """

    def __init__(self, p: float = 0.1, sites: Sites = "residual", scope: Scope = "latent") -> None:
        super().__init__(p, sites, scope)

    @property
    def label(self) -> str:
        return f"dropout with one mask per rollout, p {self.p:g} ({self.sites}, {self.scope})"

    def noise(self, backbone: LatentBackbone) -> LayerNoise:
        return _KeptNoise(self.p, self.scope)


class _KeptNoise(DropoutNoise):
    def keys_of(self, keys: Tensor, offsets: Tensor) -> Tensor:
        return fold_in(keys, _MASK_SALT).unsqueeze(-1).expand(offsets.shape)  # (R, Q)
