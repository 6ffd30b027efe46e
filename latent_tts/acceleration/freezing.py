"""The door to everything that makes a model fast on a CPU: `freeze()`; training it, or moving it elsewhere, leads out again."""

from __future__ import annotations

from typing import Any, Self

from torch import nn

from latent_tts.acceleration.layers import allow_packing, use_fast_layers, use_plain_layers


class Freezable(nn.Module):
    """A module whose layers get other classes and layouts by `freeze()`, and by nothing else.

    A model that was not frozen, is trained, or is on an accelerator holds the modules that transformers made.
    """

    def layer_to_keep(self) -> nn.Module | None:
        """A linear layer whose weights have to stay as they are, such as one that shares them with an embedding."""
        return None

    def freeze(self) -> Self:
        """Takes the gradients from weights that are only used from now on, which lets a CPU lay them out for speed."""
        super().requires_grad_(False)
        if _on_cpu(self):
            use_fast_layers(self)
            allow_packing(self, but=self.layer_to_keep())
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        if requires_grad:
            use_plain_layers(self)
        return super().requires_grad_(requires_grad)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        if not _on_cpu(self):
            use_plain_layers(self)
        return self


def _on_cpu(module: nn.Module) -> bool:
    return all(parameter.device.type == "cpu" for parameter in module.parameters())
