"""How a rollout is made different from the next: noise on the latents, the spread that the model itself predicts for
them, or dropout inside the passes that make them.

A sampler answers three questions of the engine: may the encoded prompt be shared, is the forward pass itself random,
and which latent is fed after a hidden state. Every draw is a function of the row's key, the position it is for,
counted from the end of the prompt, and the site in the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor, nn

from latent_tts.backbones.base import LatentBackbone
from latent_tts.backbones.colar import Colar
from latent_tts.errors import UserError
from latent_tts.seeding import fold_in, keep_mask, normal

Scope = Literal["latent", "prompt+latent", "prompt+latent+answer"]
Sites = Literal["ffn", "residual"]

# Output projections of the two sub-layers of a block, by the names the GPT-2 and the Llama family give them.
_FFN_OUTPUTS = ("mlp.c_proj", "mlp.down_proj")
_ATTENTION_OUTPUTS = ("attn.c_proj", "self_attn.o_proj")


class Sampler:
    """One way to draw different latent thoughts from the same problem."""

    random_pass: ClassVar[bool] = False  # True: the pass that makes a latent is random, so every rollout runs its own

    @property
    def shares_prompt(self) -> bool:
        """Whether the N rollouts of a problem may attend to one encoded copy of its prompt."""
        return True

    @property
    def random_answer(self) -> bool:
        """Whether the answer is random too, so that the same thoughts can end in different answers."""
        return False

    def check(self, backbone: LatentBackbone) -> None:
        """Raises a ``UserError`` where this sampler can't draw from the backbone."""

    def next_latent(self, backbone: LatentBackbone, hidden: Tensor, keys: Tensor, step: Tensor) -> Tensor:
        """The latent thoughts that are fed after hidden states (R, D); keys and step as in ``perturb``."""
        return self.perturb(backbone.next_latent(hidden), keys, step)

    def perturb(self, latents: Tensor, keys: Tensor, step: Tensor) -> Tensor:
        """What is fed in place of the latents.

        Args:
            latents: (R, D).
            keys: (R,) int64, the rows' random streams.
            step: (R,) int64, which latent thought of its row this is, from 1.
        """
        return latents

    @contextmanager
    def attached(self, backbone: LatentBackbone) -> Iterator[PassNoise]:
        """Prepares the backbone for random passes and leaves it as it was on exit."""
        yield PassNoise()

    def settings(self) -> dict[str, Any]:
        """Name and parameters, for records and comparisons of runs."""
        return {"name": type(self).__name__, **vars(self)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in vars(self).items())})"


class PassNoise:
    """The switch of the random sites of a backbone; this one has none."""

    def switch(self, phase: str, keys: Tensor, offsets: Tensor) -> None:
        """Announces the next pass.

        Args:
            phase: ``prompt``, ``latent`` (the pass makes a latent thought) or ``answer``.
            keys: (R,) int64.
            offsets: (R, Q) int64, positions of the pass relative to the first position after the prompt.
        """


class Deterministic(Sampler):
    """No randomness: every rollout is the greedy one."""


class AdditiveGaussianNoise(Sampler):
    """AGN: h_t + eps with eps ~ N(0, sigma^2 I), on every latent embedding before it is fed.

    Args:
        sigma: Standard deviation of the noise, in the units of the embeddings (0.5 to 0.7 suits GPT-2-sized COCONUT,
            0.01 to 0.03 a 1B Llama); 0 gives the greedy rollout.
    """

    def __init__(self, sigma: float = 0.5) -> None:
        if not sigma >= 0:
            raise UserError(f"sigma must not be negative, got {sigma}: it is the standard deviation of the noise.")
        self.sigma = sigma

    def perturb(self, latents: Tensor, keys: Tensor, step: Tensor) -> Tensor:
        if self.sigma == 0:
            return latents
        noise = normal(fold_in(keys, step), (latents.shape[-1],))
        return latents + self.sigma * noise.to(latents.dtype)


class NativeGaussian(Sampler):
    """The distribution a CoLaR was trained to predict: h_t ~ N(mean, (temperature * std)^2), both from its latent head.

    Args:
        temperature: Factor on the predicted deviation; 0 gives the greedy rollout.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        if not temperature >= 0:
            raise UserError(f"temperature must not be negative, got {temperature}: it scales the predicted deviation.")
        self.temperature = temperature

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
    """

    random_pass = True

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
    def shares_prompt(self) -> bool:
        return self.scope == "latent"

    @property
    def random_answer(self) -> bool:
        return "answer" in self.scope

    @contextmanager
    def attached(self, backbone: LatentBackbone) -> Iterator[PassNoise]:
        modules = self._find_sites(backbone)
        noise = _DropoutNoise(self.p, phases=set(self.scope.split("+")))
        handles = [module.register_forward_hook(noise.hook(site)) for site, module in enumerate(modules)]
        try:
            yield noise
        finally:
            for handle in handles:
                handle.remove()

    def _find_sites(self, backbone: LatentBackbone) -> list[nn.Module]:
        names = _FFN_OUTPUTS + (_ATTENTION_OUTPUTS if self.sites == "residual" else ())
        found = [module for name, module in backbone.model.named_modules() if name.endswith(names)]
        if not found:
            raise UserError(
                f"MC-dropout found nothing to switch on in {type(backbone.model).__name__}: its blocks have none of "
                f"{', '.join(names)}; AdditiveGaussianNoise works with any model."
            )
        return found


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
