"""CoLaR: a latent head predicts the next compressed embedding, and the model decides when to stop (arXiv 2505.16552)."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from latent_tts.backbones.base import LatentBackbone, embedding_table
from latent_tts.backbones.files import number_field
from latent_tts.errors import UserError

END = "###"


class LatentHead(nn.Module):
    """Predicts the next compressed embedding, in units of ``latent_embedding_std``: (..., D) to (..., D).

    Args:
        width: Size of hidden states and embeddings.
        inner: Size of the layers in between.
        log_std: Whether the head predicts a deviation beside the mean, as those trained by likelihood do.
    """

    def __init__(self, width: int, inner: int, log_std: bool = False) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, inner), nn.LayerNorm(inner))
        self.mean = nn.Linear(inner, width)
        self.log_std = nn.Linear(inner, width) if log_std else None

    def forward(self, hidden: Tensor) -> Tensor:
        mean: Tensor = self.mean(self.fc(hidden))
        return mean

    def distribution(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and log-deviation of the next embedding; ``None`` where the head predicts no deviation."""
        inner = self.fc(hidden)
        return self.mean(inner), None if self.log_std is None else self.log_std(inner)


class Colar(LatentBackbone):
    """Latent thoughts until the most likely next token is ``###`` (at most ``num_latents``), then ``###`` and the answer.

    Config fields of the layout: ``latent_intermediate_size``, ``latent_embedding_std``, and ``latent_log_std`` where the head
    has ``lt_head.log_std`` beside the published ``fc`` and ``mean``.
    """

    kind = "colar"
    dynamic = True
    default_num_latents = 64
    speed_form = "Question: {question} Let's think step by step:(Thinking speed: {speed})" + END
    default_prompt_form = speed_form.replace("{speed}", "2")
    special_tokens = (END,)
    end_of_thought = END
    lt_head: LatentHead

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        head = self.extra_modules(self.model.config)["lt_head"].to(self.device, self.dtype)
        self.lt_head = cast(LatentHead, head)
        self.latent_embedding_std = number_field(self.model.config, "latent_embedding_std", 1.0, least=0.0)

    @classmethod
    def from_causal_lm(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, num_latents: int | None = None, **kwargs: Any
    ) -> LatentBackbone:
        """See ``LatentBackbone``. ``###`` is always cut off as a token of its own, also where the vocabulary merges it with
        what stands before it, and the embeddings' deviation is measured from the model's table."""
        if END in tokenizer.get_vocab():
            tokenizer.add_tokens([END])
        if not hasattr(model.config, "latent_embedding_std"):
            model.config.latent_embedding_std = float(embedding_table(model).detach().std())
        return super().from_causal_lm(model, tokenizer, num_latents, **kwargs)

    @classmethod
    def extra_modules(cls, config: Any) -> dict[str, nn.Module]:
        inner = int(number_field(config, "latent_intermediate_size", config.hidden_size, least=1, whole=True))
        return {"lt_head": LatentHead(config.hidden_size, inner, getattr(config, "latent_log_std", False))}

    def extra_config(self) -> dict[str, Any]:
        config = self.model.config
        fields = {
            "latent_intermediate_size": getattr(config, "latent_intermediate_size", config.hidden_size),
            "latent_embedding_std": self.latent_embedding_std,
        }
        return fields | ({"latent_log_std": True} if self.lt_head.log_std is not None else {})

    def next_latent(self, hidden: Tensor) -> Tensor:
        latent: Tensor = self.lt_head(hidden) * self.latent_embedding_std
        return latent

    def latent_gaussian(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the next latent thought, as it is fed: (..., D) each.

        Raises:
            UserError: The head predicts no deviation.
        """
        mean, log_std = self.lt_head.distribution(hidden)
        if log_std is None:
            raise UserError(
                "The latent head of this colar checkpoint predicts no deviation (it has no lt_head.log_std): "
                "use AdditiveGaussianNoise, or train with latent_loss nll."
            )
        return mean * self.latent_embedding_std, log_std.exp() * self.latent_embedding_std
