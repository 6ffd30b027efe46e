"""CODI: the next input is a learned projection of the hidden state (arXiv 2502.21074)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from latent_tts.backbones.base import START_OF_THOUGHT, LatentBackbone
from latent_tts.backbones.files import number_field


class Codi(LatentBackbone):
    """Six latent thoughts through ``projector`` (dropout, linear, GELU, linear, layer norm), then a free-text answer.

    Config fields of the layout: ``projector`` (false: the hidden state is fed as it is), ``projector_dropout``,
    ``projector_hidden_size``.
    """

    kind = "codi"
    default_prompt_form = "{question}" + START_OF_THOUGHT

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, module in self.extra_modules(self.model.config).items():
            setattr(self, name, module.to(self.device, self.dtype))

    @classmethod
    def extra_modules(cls, config: Any) -> dict[str, nn.Module]:
        if not getattr(config, "projector", True):
            return {}
        width = config.hidden_size
        inner = int(number_field(config, "projector_hidden_size", width, least=1, whole=True))
        return {
            "projector": nn.Sequential(
                nn.Dropout(number_field(config, "projector_dropout", 0.0, least=0.0)),
                nn.Linear(width, inner),
                nn.GELU(),
                nn.Linear(inner, width),
                nn.LayerNorm(width),
            )
        }

    def extra_config(self) -> dict[str, Any]:
        config = self.model.config
        return {
            "projector": getattr(config, "projector", True),
            "projector_dropout": getattr(config, "projector_dropout", 0.0),
            "projector_hidden_size": getattr(config, "projector_hidden_size", config.hidden_size),
        }

    def next_latent(self, hidden: Tensor) -> Tensor:
        projector = self._modules.get("projector")
        return hidden if projector is None else projector(hidden)
