"""What samplers share that make passes random: which passes those are, and what that leaves of a prompt to share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

from torch import Tensor, nn

from latent_tts.backbones.base import LatentBackbone
from latent_tts.errors import UserError
from latent_tts.sampling.base import PassNoise, PromptSharing, Sampler

Scope = Literal["latent", "prompt+latent", "prompt+latent+answer"]


class RandomPasses(Sampler):
    """A sampler that changes what layers give while a pass in scope runs.

    Args:
        scope: Passes that are random. ``latent``: those that make the latent thoughts, from the one over the last prompt
            token to the one over the last but one latent, with the rest of the prompt encoded once per problem.
            ``prompt+latent``: the whole prompt too, at the cost of one prompt pass per rollout.
            ``prompt+latent+answer``: the answer too.

    Raises:
        UserError: There is no such scope.
    """

    scope: Scope

    def __init__(self, scope: Scope) -> None:
        if scope not in get_args(Scope):
            raise UserError(f"scope must be one of {', '.join(get_args(Scope))}, got {scope!r}.")
        self.scope = scope

    @property
    def prompt_sharing(self) -> PromptSharing:
        return PromptSharing.ALL_BUT_LAST if self.scope == "latent" else PromptSharing.NONE

    @property
    def random_answer(self) -> bool:
        return "answer" in self.scope

    def layers(self, backbone: LatentBackbone) -> list[nn.Module]:
        """The layers whose outputs are changed, block by block: a layer's number is part of its random stream."""
        raise NotImplementedError

    def noise(self, backbone: LatentBackbone) -> LayerNoise:
        """What changes them."""
        raise NotImplementedError

    def check(self, backbone: LatentBackbone) -> None:
        self.layers(backbone)

    @contextmanager
    def attached(self, backbone: LatentBackbone) -> Iterator[PassNoise]:
        noise = self.noise(backbone)
        handles = [layer.register_forward_hook(noise.hook(i)) for i, layer in enumerate(self.layers(backbone))]
        try:
            yield noise
        finally:
            for handle in handles:
                handle.remove()


class LayerNoise(PassNoise):
    """Changes the outputs of layers while a pass in scope runs.

    Args:
        scope: Passes that are random.
    """

    def __init__(self, scope: Scope) -> None:
        self.phases = set(scope.split("+"))
        self.stream: Tensor | None = None  # while the running pass is random

    def switch(self, phase: str, keys: Tensor, offsets: Tensor) -> None:
        self.stream = self.keys_of(keys, offsets) if phase in self.phases else None

    def keys_of(self, keys: Tensor, offsets: Tensor) -> Tensor:
        """What the draws of a pass are made from, from keys (R,) and offsets (R, Q) as in `switch`."""
        raise NotImplementedError

    def changed(self, layer: int, stream: Tensor, input: Tensor, output: Tensor) -> Tensor:
        """The output that a layer is to have, from its input and its own output."""
        raise NotImplementedError

    def hook(self, layer: int) -> Any:
        def change(_module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
            return None if self.stream is None else self.changed(layer, self.stream, inputs[0], output)

        return change
