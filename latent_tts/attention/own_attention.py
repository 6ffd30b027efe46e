"""What a model reads that attends in its own way: whole rows of keys and values, prompts padded on the left.

There every distance between two positions is what it is without padding, so windows, biases by distance and masks hold that
transformers makes by counting columns. Costs a copy of the keys and values in every pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from latent_tts.attention.interface import shares_attention
from latent_tts.attention.shared_prefix import SharedPrefixCache


class PromptCache(DynamicCache):
    """Records the keys and values of a pass over right-padded prompts, every position of them."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()  # without the config, whose windows would have it forget
        self.kind = SharedPrefixCache if shares_attention(model) else OwnAttentionCache

    def as_prefix(self, mask: Tensor | None, max_slots: int | None = None) -> SharedPrefixCache:
        """What rollouts of these prompts share; arguments as `SharedPrefixCache.from_prompt` has them."""
        return self.kind.from_prompt(self, mask, max_slots)


class OwnAttentionCache(SharedPrefixCache):
    """See the module's docstring."""

    running = 0  # positions per row of the running pass

    @classmethod
    def _laid_out(
        cls, layers: list[tuple[Tensor, Tensor]], mask: Tensor | None
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
        if mask is not None:
            layers = [(_to_the_right(keys, mask), _to_the_right(values, mask)) for keys, values in layers]
            mask = mask.flip(1)
        return [(keys.transpose(-1, -2), values) for keys, values in layers], mask

    def _prepare(self, num_positions: int) -> None:
        self.running = num_positions

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Writes the keys and values (R, H, Q, hd) of the running pass; returns all that a row has, (R, H, L + S, hd) each."""
        super().update(key_states, value_states, layer_idx)
        (prefix_keys, prefix_values), (keys, values) = self.prefix[layer_idx], self.suffix[layer_idx]
        return self._whole_rows(prefix_keys.transpose(-1, -2), keys), self._whole_rows(prefix_values, values)

    def _whole_rows(self, prefix: Tensor, suffix: Tensor) -> Tensor:
        """A prefix (P, H, L, hd) and the used slots of a suffix (P, H, G, S, hd), row by row: (R, H, L + S, hd)."""
        shared = prefix.unsqueeze(1).expand(-1, self.group_size, -1, -1, -1)
        return torch.cat([shared, suffix[:, :, :, : self.length].transpose(1, 2)], dim=3).flatten(0, 1)

    def pass_arguments(self) -> dict[str, Any]:
        """The mask that every model knows how to read, (R, L + S) long: 1 where a row has a position."""
        groups, members, device = self.num_groups, self.group_size, self._values.device
        ones = torch.ones(1, 1, 1, dtype=torch.long, device=device)
        before = ones if self.prefix_mask is None else self.prefix_mask.long().unsqueeze(1)
        now = ones if self.valid is None else self.valid.long()
        parts = [before.expand(groups, members, self._values.shape[2]), now.expand(groups, members, self.length)]
        return {"past_key_values": self, "attention_mask": torch.cat(parts, dim=2).flatten(0, 1)}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions that a row had behind it when the running pass began, padding included."""
        return self._values.shape[2] + self.length - self.running

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Positions that are attended to, and how many earlier ones are not kept."""
        return self._values.shape[2] + self.length, 0


def _to_the_right(states: Tensor, mask: Tensor) -> Tensor:
    """Right-padded states (P, H, L, hd), padded on the left; the mask (P, L) says where they are real."""
    length = mask.shape[1]
    source = torch.arange(length, device=mask.device) - (length - mask.sum(dim=1, keepdim=True))  # (P, L)
    index = source.clamp(min=0).view(len(mask), 1, length, 1).expand(-1, states.shape[1], -1, states.shape[3])
    return states.gather(2, index)
