"""From hidden states to the scores of tokens, exactly as a model's own head makes them.

Most models score with a matrix alone. Some multiply its scores (Cohere, Granite, MiniCPM), some bend them below a cap (Gemma):

    scores = cap tanh(scale W h / cap)

Which of the numbers in its configuration a model uses for that is found by trying them beside its own forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from latent_tts.attention.probe import once
from latent_tts.attention.probe_passes import RefusedError

_POSITIONS = 6


@dataclass(frozen=True)
class Scores:
    """What a model does with the output of its last layer."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, raw: Tensor) -> Tensor:
        """Output of the last layer (..., V) to scores (..., V)."""
        scaled = raw if self.scale == 1.0 else raw * self.scale
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap


def scores_of(model: PreTrainedModel) -> Scores:
    """How a causal LM scores, found out once per configuration.

    Raises:
        UserError: It scores in a way that is none of those known here.
    """
    return once("scored", model, lambda: _find(model))


def _find(model: PreTrainedModel) -> Scores:
    output: Any = model.get_output_embeddings()
    if output is None:
        raise RefusedError("has no vocabulary projection that a hidden state could be read by")
    table: Any = model.get_input_embeddings()
    embeds = table.weight.detach()[: _POSITIONS * 3 : 3].unsqueeze(0)
    base: Any = model.base_model
    raw = output(base(inputs_embeds=embeds, use_cache=False).last_hidden_state).float()
    wanted = model(inputs_embeds=embeds, use_cache=False).logits.float()
    tolerance = 1e-4 if torch.finfo(model.dtype).bits > 16 else 0.03
    for scores in _candidates(model.config.get_text_config()):
        if float((scores(raw) - wanted).norm()) <= tolerance * float(wanted.norm()):
            return scores
    raise RefusedError("scores its vocabulary in a way of its own, which training and decoding would miss")


def _candidates(config: Any) -> Iterator[Scores]:
    """Every way to score that the numbers of a configuration allow, the plainest last where several agree."""
    numbers = {name: value for name, value in config.to_dict().items() if isinstance(value, float | int) and value}
    factors = [value for name, value in numbers.items() if ("logit" in name or "lm_head" in name) and "cap" not in name]
    if "dim_model_base" in numbers:
        factors.append(numbers["dim_model_base"] / config.hidden_size)
    caps = [value for name, value in numbers.items() if "logit" in name and "cap" in name and "attn" not in name]
    scales = [scale for factor in factors for scale in (factor, 1 / factor)]
    yield from (Scores(float(scale), cap) for cap, scale in product([*map(float, caps), None], [*scales, 1.0]))
