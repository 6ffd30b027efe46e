"""Singular-value perturbation (SVP) of the value projections: every rollout attends with values of its own strength.

A value projection W = U diag(s) V^T becomes W' = U diag(s * (1 + eps)) V^T with eps ~ N(0, sigma^2), drawn once per rollout and
layer. No row needs weights of its own:

    x W' = x W + ((x U) * (s * eps)) V^T

so a pass costs two more products per layer, the same for all rows, and one factor a singular value and row.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from latent_tts.acceleration.freezing import Freezable
from latent_tts.backbones.base import LatentBackbone
from latent_tts.sampling.base import check_scale
from latent_tts.sampling.random_passes import LayerNoise, RandomPasses, Scope
from latent_tts.sampling.value_projections import ValueProjection, find_value_projections
from latent_tts.seeding import fold_in, normal

_SALT = 1 << 45  # apart from the small numbers that steps, children and sites are folded in with


class SingularValuePerturbation(RandomPasses):
    """SVP: the singular values of every value projection times 1 + eps, eps ~ N(0, sigma^2), one draw per rollout and layer.

    The weights are taken as they are when the engine is made. A child of a search, or a continuation, draws anew from its
    fork on.

    Args:
        sigma: Standard deviation of the relative change of a singular value; 0 gives the greedy rollout.
        scope: Passes with perturbed values, as for MonteCarloDropout: ``latent`` shares the prompt, ``prompt+latent`` encodes it
            once per rollout, ``prompt+latent+answer`` answers with them too.

    Raises:
        UserError: An option is out of its range.
    """

    def __init__(self, sigma: float = 0.2, scope: Scope = "latent") -> None:
        check_scale("sigma", sigma, "the standard deviation of the relative change of a singular value")
        self.sigma = sigma
        super().__init__(scope)

    @property
    def is_greedy(self) -> bool:
        return self.sigma == 0

    @property
    def label(self) -> str:
        return f"singular-value perturbation, sigma {self.sigma:g} ({self.scope})"

    def check(self, backbone: LatentBackbone) -> None:
        values = find_value_projections(backbone.model)
        bases = [SingularBasis(one) for one in values]
        if not any(weight.requires_grad for weight in backbone.parameters()):
            for basis in bases:
                basis.freeze()
        _decomposed[backbone.model] = list(zip(values, bases, strict=True))

    def layers(self, backbone: LatentBackbone) -> list[nn.Module]:
        return [value.layer for value, _ in _decomposed[backbone.model]]

    def noise(self, backbone: LatentBackbone) -> LayerNoise:
        bases = [basis.like(backbone) for _, basis in _decomposed[backbone.model]]
        return _ValueNoise(self.sigma, self.scope, bases)


class SingularBasis(Freezable):
    """x (..., D) to (x U) * factors, and that to its product with diag(s) V^T, for a value projection U diag(s) V^T."""

    def __init__(self, value: ValueProjection) -> None:
        super().__init__()
        left, strengths, right = _svd(value.matrix())
        self.first = value.first
        self.rank = len(strengths)
        self.into = _linear(left.t(), value.layer.weight.dtype)
        self.out_of = _linear(right.t() * strengths, value.layer.weight.dtype)

    def like(self, backbone: LatentBackbone) -> SingularBasis:
        """Brought to where a backbone is now, in its type."""
        weight = self.into.weight
        if (weight.device, weight.dtype) != (backbone.device, backbone.dtype):
            self.to(device=backbone.device, dtype=backbone.dtype)
        return self

    def forward(self, x: Tensor, factors: Tensor) -> Tensor:
        """x (R, Q, D) and factors (R, 1, rank) to what they add to the values, (R, Q, W)."""
        added: Tensor = self.out_of(self.into(x) * factors)
        return added


class _ValueNoise(LayerNoise):
    """Adds to the values of a layer what the change of its singular values makes of the layer's input."""

    def __init__(self, sigma: float, scope: Scope, bases: list[SingularBasis]) -> None:
        super().__init__(scope)
        self.sigma, self.bases = sigma, bases

    def keys_of(self, keys: Tensor, offsets: Tensor) -> Tensor:
        return fold_in(keys, _SALT)  # (R,)

    def changed(self, layer: int, stream: Tensor, input: Tensor, output: Tensor) -> Tensor:
        basis = self.bases[layer]
        factors = self.sigma * normal(fold_in(stream, layer), (basis.rank,)).unsqueeze(1)  # (R, 1, rank)
        added = basis(input.reshape(len(stream), -1, input.shape[-1]), factors.to(input.dtype))
        values = output[..., basis.first :]
        return torch.cat([output[..., : basis.first], values + added.view(values.shape)], dim=-1)


_decomposed: WeakKeyDictionary[PreTrainedModel, list[tuple[ValueProjection, SingularBasis]]] = WeakKeyDictionary()


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (D, r), s (r,) and V^T (r, W) of a matrix (D, W), in float64 on the CPU.

    By one thread: sums in another order, by more of them, would change last bits.
    """
    wide = matrix.detach() if matrix.is_meta else matrix.detach().cpu().double()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        left, strengths, right = torch.linalg.svd(wide, full_matrices=False)
    finally:
        torch.set_num_threads(threads)
    return left, strengths, right


def _linear(weight: Tensor, dtype: torch.dtype) -> nn.Linear:
    """A layer without bias that multiplies by weights (outputs, inputs)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.to(dtype).contiguous(), requires_grad=False)
    return layer
