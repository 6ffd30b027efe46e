"""Monte-Carlo dropout in the passes that make the latent thoughts (arXiv 2510.07745)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

from torch import Tensor, nn

from latent_tts.backbones.base import LatentBackbone
from latent_tts.errors import UserError
from latent_tts.sampling.base import PassNoise, PromptSharing, Sampler
from latent_tts.sampling.dropout_sites import find_sites
from latent_tts.seeding import fold_in, keep_mask

Scope = Literal["latent", "prompt+latent", "prompt+latent+answer"]
Sites = Literal["ffn", "residual"]


class MonteCarloDropout(Sampler):
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
        if scope not in get_args(Scope):
            raise UserError(f"scope must be one of {', '.join(get_args(Scope))}, got {scope!r}.")
        self.p = p
        self.sites: Sites = sites
        self.scope: Scope = scope

    @property
    def label(self) -> str:
        return f"MC-dropout, p {self.p:g} ({self.sites}, {self.scope})"

    @property
    def prompt_sharing(self) -> PromptSharing:
        return PromptSharing.ALL_BUT_LAST if self.scope == "latent" else PromptSharing.NONE

    @property
    def random_answer(self) -> bool:
        return "answer" in self.scope

    def check(self, backbone: LatentBackbone) -> None:
        self._sites(backbone)

    @contextmanager
    def attached(self, backbone: LatentBackbone) -> Iterator[PassNoise]:
        modules = [backbone.model.get_submodule(name) for name in self._sites(backbone)]
        noise = _DropoutNoise(self.p, phases=set(self.scope.split("+")))
        handles = [module.register_forward_hook(noise.hook(site)) for site, module in enumerate(modules)]
        try:
            yield noise
        finally:
            for handle in handles:
                handle.remove()

    def _sites(self, backbone: LatentBackbone) -> list[str]:
        """Names of the masked layers, block by block: a site's number is part of its random stream."""
        found = find_sites(backbone.model)
        if self.sites == "ffn":
            return list(found.feed_forward)
        return [name for pair in zip(found.attention, found.feed_forward, strict=True) for name in pair]


class _DropoutNoise(PassNoise):
    """Multiplies the output of every site by its own mask while a phase in scope runs."""

    def __init__(self, p: float, phases: set[str]) -> None:
        self.p = p
        self.phases = phases
        self.position_keys: Tensor | None = None  # (R, Q) while masks are on

    def switch(self, phase: str, keys: Tensor, offsets: Tensor) -> None:
        self.position_keys = fold_in(keys.unsqueeze(-1), offsets) if phase in self.phases else None

    def hook(self, site: int) -> Any:
        def drop(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
            if self.position_keys is None:
                return None
            keep = keep_mask(fold_in(self.position_keys, site), (output.shape[-1],), self.p)  # (R, Q, D)
            return output * keep.reshape(output.shape).to(output.dtype).mul_(1 / (1 - self.p))

        return drop
