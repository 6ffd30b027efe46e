"""CoLaR: a latent head predicts the next compressed embedding, and the model decides when to stop (arXiv 2505.16552)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from latent_tts.backbones.base import LatentBackbone

END = "###"


class LatentHead(nn.Module):
    """Predicts the mean of the next compressed embedding, in units of ``latent_embedding_std``: (..., D) to (..., D)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, inner), nn.LayerNorm(inner))
        self.mean = nn.Linear(inner, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.mean(self.fc(hidden))


class Colar(LatentBackbone):
    """Latent thoughts until the most likely next token is ``###`` (at most ``num_latents``), then ``###`` and the answer.

    Config fields of the layout: ``latent_intermediate_size``, ``latent_embedding_std``.
    """

    kind = "colar"
    dynamic = True
    default_num_latents = 64
    default_prompt_form = "Question: {question} Let's think step by step:(Thinking speed: 2)" + END
    special_tokens = (END,)
    end_of_thought = END

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lt_head = self.extra_modules(self.model.config)["lt_head"].to(self.device, self.dtype)
        self.latent_embedding_std: float = float(getattr(self.model.config, "latent_embedding_std", 1.0))

    @classmethod
    def extra_modules(cls, config: Any) -> dict[str, nn.Module]:
        return {
            "lt_head": LatentHead(config.hidden_size, getattr(config, "latent_intermediate_size", config.hidden_size))
        }

    def extra_config(self) -> dict[str, Any]:
        config = self.model.config
        return {
            "latent_intermediate_size": getattr(config, "latent_intermediate_size", config.hidden_size),
            "latent_embedding_std": self.latent_embedding_std,
        }

    def next_latent(self, hidden: Tensor) -> Tensor:
        return self.lt_head(hidden) * self.latent_embedding_std
