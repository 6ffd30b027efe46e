"""The differentiable COCONUT forward pass, and the token cross-entropy on top of it.

A batch is three blocks of columns, each padded on the right: a row may have holes, but its first column is real.

    prompt          latents      tail
    q q q q s .     h h          e t t a a x
    q q s . . .     h h h h      e a a x . .      (. is padding: masked, and not counted by the position ids)

1. one pass over the prompts fills the cache of keys and values,
2. each latent is one more pass of one position, fed with the hidden state the position before it ended in,
3. one pass over the tail gives the hidden states that predict the written tokens.

Gradients flow through all of it. Logits are computed only where there is a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from latent_tts.attention.padding import pad_right
from latent_tts.backbones.base import LatentBackbone
from latent_tts.training.coconut_curriculum import ThoughtSequence


@dataclass(frozen=True)
class ThoughtBatch:
    """Padded rows of `ThoughtSequence`; masks are bool, true where there is a real token or latent."""

    prompt_ids: Tensor  # (B, P)
    prompt_mask: Tensor  # (B, P)
    latent_mask: Tensor  # (B, T)
    tail_ids: Tensor  # (B, S)
    tail_mask: Tensor  # (B, S)

    @property
    def num_labels(self) -> int:
        return int(self.tail_mask[:, 1:].sum())


def collate(
    sequences: Sequence[ThoughtSequence], pad_token_id: int, device: torch.device | str = "cpu"
) -> ThoughtBatch:
    prompt_ids, prompt_mask = pad_right([s.prompt_ids for s in sequences], pad_token_id)
    tail_ids, tail_mask = pad_right([s.tail_ids for s in sequences], pad_token_id)
    _, latent_mask = pad_right([[0] * s.num_latents for s in sequences], 0)
    return ThoughtBatch(*(t.to(device) for t in (prompt_ids, prompt_mask, latent_mask, tail_ids, tail_mask)))


class Thought:
    """The cached state of a batch of rows that are being thought through, one block of columns after the other.

    Args:
        backbone: The model.
        first_positions: Position of each row's first column, (B,); 0 where it is left out.
    """

    def __init__(self, backbone: LatentBackbone, first_positions: Tensor | None = None) -> None:
        self.backbone = backbone
        self.first_positions = first_positions
        self.cache = DynamicCache(config=backbone.model.config)
        self.mask: Tensor | None = None  # (B, columns so far)

    def fork(self) -> Thought:
        """A second continuation of the columns so far; gradients of both flow into them."""
        other = copy(self)
        other.cache = copy(self.cache)
        other.cache.layers = [
            copy(layer) for layer in self.cache.layers
        ]  # a layer replaces its tensors, it never writes
        return other

    def feed(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """Append columns: embeds (B, L, D), mask (B, L) -> hidden states (B, L, D)."""
        mask, position_ids = self._append(mask)
        return self.backbone.last_hidden(embeds, mask, position_ids, past_key_values=self.cache)

    def feed_layers(self, embeds: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """The same, with the states of every layer, from what goes into the first: (B, L, D) each, the last after the norm."""
        mask, position_ids = self._append(mask)
        return self.backbone.hidden_layers(embeds, mask, position_ids, past_key_values=self.cache)

    def _append(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The mask (B, columns so far and new ones) and the positions (B, L) of the new columns."""
        self.mask = mask if self.mask is None else torch.cat([self.mask, mask], dim=1)
        position_ids = (self.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -mask.shape[1] :]
        if self.first_positions is not None:
            position_ids = position_ids + self.first_positions.unsqueeze(-1)
        return self.mask, position_ids

    def think(self, prompt_ids: Tensor, prompt_mask: Tensor, latent_mask: Tensor) -> None:
        """Feed the prompts (or what is left of them), then latent by latent what the model makes of them."""
        hidden = self.feed(self.backbone.embed(prompt_ids), prompt_mask)
        last = prompt_mask.sum(dim=1) - 1
        hidden = hidden[torch.arange(len(last), device=last.device), last]  # (B, D), each row's last real column
        for mask in latent_mask.unbind(dim=1):
            latent = self.backbone.next_latent(hidden)
            hidden = self.feed(latent.unsqueeze(1), mask.unsqueeze(1))[:, 0]


def token_losses(backbone: LatentBackbone, batch: ThoughtBatch) -> Tensor:
    """Cross-entropy of every label of the batch: (number of labels,), in reading order, independent of padding."""
    thought = Thought(backbone)
    thought.think(batch.prompt_ids, batch.prompt_mask, batch.latent_mask)
    hidden = thought.feed(backbone.embed(batch.tail_ids), batch.tail_mask)  # (B, S, D)
    labelled = batch.tail_mask[:, 1:]
    logits = backbone.logits(hidden[:, :-1][labelled])  # (labels, V)
    return cross_entropy(logits.float(), batch.tail_ids[:, 1:][labelled], reduction="none")


@torch.no_grad()
def greedy_texts(
    backbone: LatentBackbone, questions: Sequence[str], num_latents: int, max_new_tokens: int
) -> list[str]:
    """Think `num_latents` latents about every question, then write greedily until the end of text.

    For validation during training, where the number of latents follows the stage and steps may still be written.
    """
    prompt_ids, prompt_mask = pad_right(backbone.encode_prompts(list(questions)), backbone.pad_token_id)
    prompt_ids, prompt_mask = prompt_ids.to(backbone.device), prompt_mask.to(backbone.device)
    thought = Thought(backbone)
    thought.think(prompt_ids, prompt_mask, prompt_mask.new_ones(len(questions), num_latents))
    token = torch.full((len(questions),), backbone.end_of_thought_id, device=backbone.device)
    going = torch.ones_like(token, dtype=torch.bool)
    written: list[Tensor] = []
    while len(written) < max_new_tokens and going.any():
        hidden = thought.feed(backbone.embed(token).unsqueeze(1), going.unsqueeze(1))
        token = backbone.logits(hidden[:, 0]).argmax(dim=-1)
        token = torch.where(going, token, backbone.pad_token_id)
        going = going & ~backbone.ends_text(token)
        written.append(token)
    rows = torch.stack(written, dim=1).tolist()
    ends = [next((i for i, token in enumerate(row) if token in backbone.eos_token_ids), len(row)) for row in rows]
    return backbone.tokenizer.batch_decode([row[:end] for row, end in zip(rows, ends, strict=True)])
