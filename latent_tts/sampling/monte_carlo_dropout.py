"""Monte-Carlo dropout in the passes that make the latent thoughts (arXiv 2510.07745)."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

from latent_tts.backbones.base import LatentBackbone
from latent_tts.errors import UserError
from latent_tts.sampling.dropout_sites import find_sites
from latent_tts.sampling.random_passes import LayerNoise, RandomPasses, Scope
from latent_tts.seeding import fold_in, keep_mask

Sites = Literal["ffn", "residual"]


class MonteCarloDropout(RandomPasses):
    """MC-dropout: fresh Bernoulli masks per rollout and position, scaled by 1 / (1 - p).

    Args:
        p: Probability that a feature is dropped (0.1 to 0.3 suits GPT-2-sized models, 0.01 to 0.03 a 1B Llama).
        sites: ``ffn`` masks the output of every feed-forward sub-layer, ``residual`` that of the attention too (what
            the published GPT-2 evaluation does).
        scope: Passes with masks on. ``latent``: those that make the latent thoughts, from the one over the last prompt
            token to the one over the last but one latent, with the rest of the prompt encoded once per problem.
            ``prompt+latent``: the whole prompt too, as published for COCONUT and CODI, at the cost of one prompt pass
            per rollout. ``prompt+latent+answer``: the answer too, as published for CoLaR.

    Raises:
        UserError: An option is out of its range.
    """

    def __init__(self, p: float = 0.1, sites: Sites = "residual", scope: Scope = "latent") -> None:
        if not 0 < p < 1:
            raise UserError(
                f"p must lie between 0 and 1, both excluded, got {p}; Deterministic() samples without dropout."
            )
        if sites not in get_args(Sites):
            raise UserError(f"sites must be one of {', '.join(get_args(Sites))}, got {sites!r}.")
        self.p = p
        self.sites: Sites = sites
        super().__init__(scope)

    @property
    def label(self) -> str:
        return f"MC-dropout, p {self.p:g} ({self.sites}, {self.scope})"

    def layers(self, backbone: LatentBackbone) -> list[nn.Module]:
        found = find_sites(backbone.model)
        names = found.feed_forward
        if self.sites == "residual":
            names = tuple(name for pair in zip(found.attention, found.feed_forward, strict=True) for name in pair)
        return [backbone.model.get_submodule(name) for name in names]

    def noise(self, backbone: LatentBackbone) -> LayerNoise:
        return DropoutNoise(self.p, self.scope)


class DropoutNoise(LayerNoise):
    """Multiplies the output of every site by a mask of its own for every row and position."""

    def __init__(self, p: float, scope: Scope) -> None:
        super().__init__(scope)
        self.p = p

    def keys_of(self, keys: Tensor, offsets: Tensor) -> Tensor:
        return fold_in(keys.unsqueeze(-1), offsets)  # (R, Q)

    def changed(self, layer: int, stream: Tensor, input: Tensor, output: Tensor) -> Tensor:
        keep = keep_mask(fold_in(stream, layer), (output.shape[-1],), self.p)  # (R, Q, D)
        return output * keep.reshape(output.shape).to(output.dtype).mul_(1 / (1 - self.p))
