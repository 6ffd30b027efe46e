"""Keys and values of a batch of rollouts: the prompt's stored once per problem, each rollout's own suffix beside them.

The rows of a batch form a rectangle of P groups (problems) by G members (rollouts). Attention of a row joins the two
parts exactly: its scores against the group's prefix and against its own suffix go through one softmax.

    prefix  keys (P, H, hd, L'), values (P, H, L, hd)   right-padded, hidden where a shorter prompt has no token
    suffix  (P, H, G, S, hd)   static buffers, written in place at slot ``length``, which forks may share (``suffix.py``)

On the CPU attention goes by the kernels (``latent_tts/acceleration/kernels``) where they can compute it, elsewhere by
batched products.

For models that attend in the shared way (`latent_tts/attention/interface.py`); `own_attention.py` has what the others need.
"""

from __future__ import annotations

from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from latent_tts.acceleration.kernels import attention
from latent_tts.attention.suffix import Suffix


def prefers_whole_buffers(keys: Tensor) -> bool:
    """Whether attention had better read unused slots too: on accelerators, where shapes should stay the same from pass to
    pass, and in half precision, where batched products first copy operands that are not contiguous."""
    return keys.device.type != "cpu" or keys.dtype in (torch.bfloat16, torch.float16)


class SharedPrefixCache(Cache):
    """See the module's docstring. Made by ``from_prompt`` and handed to the model for passes over suffix positions.

    Attributes:
        group_size: Rows per prefix (G).
        length: Suffix slots in use.
    """

    def __init__(
        self,
        prefix: list[tuple[Tensor, Tensor]],
        prefix_mask: Tensor | None,
        suffix: Suffix,
        group_size: int = 1,
        length: int = 0,
        valid: Tensor | None = None,
    ) -> None:
        super().__init__(layers=[])
        self.prefix = prefix  # per layer keys (P, H, hd, L'), L' at least L, and values (P, H, L, hd)
        self.prefix_mask = prefix_mask  # (P, L) bool, None where every position is real
        self.suffix = suffix  # per layer, each (P, H, G, S, hd); may be other caches' too
        self.group_size = group_size
        self.length = length
        self.valid = valid  # (P, G, S) bool; None: every slot in use is a real position
        self.by_kernel = False  # of the running pass
        self.prefix_lengths: Tensor | None = None  # of a running pass by the kernel, (P,) int64
        self.bias: Tensor | None = None  # of another running pass, see _visibility
        self.whole_buffers = prefers_whole_buffers(prefix[0][1])

    @classmethod
    def from_prompt(cls, cache: DynamicCache, mask: Tensor | None, max_slots: int | None = None) -> Self:
        """Takes over the keys and values of a prompt pass with right-padded prompts.

        Args:
            cache: What the pass recorded.
            mask: (P, L) bool, None where every position is real.
            max_slots: Suffix positions that a row will need at most, where that is known: buffers grow no further.
        """
        layers = cast(list[DynamicLayer], cache.layers)
        filled = [(cast(Tensor, layer.keys), cast(Tensor, layer.values)) for layer in layers]
        prefix, mask = cls._laid_out(filled, mask)
        return cls(prefix, mask, Suffix.empty(prefix, max_slots=max_slots))

    @classmethod
    def _laid_out(
        cls, layers: list[tuple[Tensor, Tensor]], mask: Tensor | None
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
        """Keys and values of right-padded prompts, (P, H, L, hd), as this cache holds them, and where they are real."""
        prefix = []
        for keys, values in layers:
            columns = attention.in_columns(keys) if _kernels_suit(keys, values) else keys.transpose(-1, -2)
            prefix.append((columns, values.contiguous()))
        return prefix, mask

    @property
    def num_groups(self) -> int:
        return self._values.shape[0]

    @property
    def _values(self) -> Tensor:
        """The prefixes' values in the first layer, (P, H, L, hd): what all layers are like."""
        return self.prefix[0][1]

    @property
    def num_rows(self) -> int:
        return self.num_groups * self.group_size

    # Row arithmetic -------------------------------------------------------------------------------------------------

    def repeat(self, times: int) -> Self:
        """Every row becomes ``times`` neighbouring rows; the prefix is shared, the suffix copied."""
        suffix = self.suffix.rearranged(lambda buffer: buffer.repeat_interleave(times, dim=2), self.length)
        valid = None if self.valid is None else self.valid.repeat_interleave(times, dim=1)
        return type(self)(self.prefix, self.prefix_mask, suffix, self.group_size * times, self.length, valid)

    def select(self, index: Tensor) -> Self:
        """New rectangle from row numbers (P', G'); the rows of a new group must share one prefix.

        The prefix is gathered only where groups are dropped or reordered.
        """
        index = index.to(self._values.device)
        groups, member = index[:, 0] // self.group_size, index % self.group_size  # (P',), (P', G')
        # Advanced indices on dims 0 and 2 move to the front: (P', G', H, S, hd).
        suffix = self.suffix.rearranged(
            lambda buffer: buffer[groups.unsqueeze(1), :, member].transpose(1, 2), self.length
        )
        valid = None if self.valid is None else self.valid[groups.unsqueeze(1), member]
        prefix, mask = self.prefix, self.prefix_mask
        if len(groups) != self.num_groups or not torch.equal(groups, torch.arange(len(groups), device=groups.device)):
            prefix = [(keys[groups], values[groups]) for keys, values in prefix]
            mask = None if mask is None else mask[groups]
        return type(self)(prefix, mask, suffix, index.shape[1], self.length, valid)

    def rewind(self, length: int) -> Self:
        """The same rows with only their first ``length`` suffix slots."""
        valid = None if self.valid is None else self.valid[..., :length]
        return type(self)(self.prefix, self.prefix_mask, self.suffix, self.group_size, length, valid)

    # One forward pass -----------------------------------------------------------------------------------------------

    def extended(self, num_positions: int, real: Tensor | None = None) -> Self:
        """The same rows with room for a pass over ``num_positions`` more positions each; this cache stays as it is.

        Args:
            num_positions: Q, positions fed per row.
            real: (R, Q) bool, false where a row only waits: that slot is never attended to. ``None``: all real.
        """
        suffix = self.suffix.reserve(self.length, num_positions)
        end, valid = self.length + num_positions, self._valid_with(num_positions, real)
        new = type(self)(self.prefix, self.prefix_mask, suffix, self.group_size, end, valid)
        new._prepare(num_positions)
        return new

    def _prepare(self, num_positions: int) -> None:
        """Finds out once what all layers of a pass over ``num_positions`` ask for."""
        keys, values = self.prefix[0]
        self.by_kernel = (
            keys.shape[2] == values.shape[3] and attention.are_columns(keys) and attention.suits(keys, values)
        )
        if self.by_kernel:
            self.prefix_lengths = self._prefix_lengths()
        else:
            self.bias = self._visibility(num_positions)

    def _valid_with(self, num_positions: int, real: Tensor | None) -> Tensor | None:
        """Which slots are real positions after a pass, (P, G, S + Q) bool; ``None``: all."""
        if real is None and self.valid is None:
            return None
        shape, device = (self.num_groups, self.group_size), self._values.device
        before = torch.ones(*shape, self.length, dtype=torch.bool, device=device) if self.valid is None else self.valid
        now = (
            torch.ones(*shape, num_positions, dtype=torch.bool, device=device)
            if real is None
            else real.view(*shape, -1)
        )
        return torch.cat([before, now], dim=-1)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Writes the keys and values (R, H, Q, hd) of the running pass into their slots."""
        keys, values = self.suffix[layer_idx]
        start = self.length - key_states.shape[2]
        keys[:, :, :, start : self.length] = self._as_groups(key_states)
        values[:, :, :, start : self.length] = self._as_groups(value_states)
        return key_states, value_states

    def attend(self, layer_idx: int, query: Tensor, scaling: float) -> Tensor:
        """Attention of the running pass: query (R, heads, Q, hd) to output (R, Q, heads, hd)."""
        prefix_keys, prefix_values = self.prefix[layer_idx]
        if self.by_kernel:
            assert self.prefix_lengths is not None
            parts = prefix_keys, prefix_values, self.prefix_lengths, *self.suffix[layer_idx]
            return attention.attend(query, *parts, self.length, self.valid, scaling)
        keys, values = (buffer[:, :, :, : self._slots] for buffer in self.suffix[layer_idx])  # (P, H, G, S, hd)
        rows, heads, length, width = query.shape
        groups, kv_heads, prefix_length, out_width = prefix_values.shape
        # Query heads that share a key head (grouped-query attention) become further query positions of that head.
        shape = (groups, self.group_size, kv_heads, heads // kv_heads, length, width)
        q = query.new_empty(groups, kv_heads, self.group_size, heads // kv_heads * length, width)
        split = query.view(shape).transpose(1, 2)  # (P, H, G, heads / H, Q, hd)
        torch.mul(split, scaling, out=q.view(split.shape))
        on_prefix = q.view(groups, kv_heads, -1, width) @ prefix_keys[..., :prefix_length]  # (P, H, G * Q, L)
        on_suffix = q @ keys.transpose(-1, -2)  # (P, H, G, Q, S)
        joined = torch.cat([on_prefix.view(*q.shape[:-1], prefix_length), on_suffix], dim=-1)  # (P, H, G, Q, L + S)
        scores = joined.float()
        if self.bias is not None:
            scores.view(*split.shape[:-1], -1).add_(self.bias)
        weights = scores.softmax(dim=-1).to(query.dtype)
        from_prefix = weights[..., :prefix_length].reshape(groups, kv_heads, -1, prefix_length) @ prefix_values
        from_suffix = weights[..., prefix_length:] @ values  # (P, H, G, Q, hd)
        out = query.new_empty(rows, length, heads, out_width)
        as_query = out.view(groups, self.group_size, length, kv_heads, -1, out_width).permute(0, 3, 1, 4, 2, 5)
        torch.add(from_prefix.view(as_query.shape), from_suffix.view(as_query.shape), out=as_query)
        return out

    def pass_arguments(self) -> dict[str, Any]:
        """What the model is handed for a pass over the positions that `extended` has made room for."""
        # A 4-D mask is passed on as it is; this one is read by nobody.
        placeholder = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self._values.device)
        return {"past_key_values": self, "attention_mask": placeholder, "shared_prefix": self}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions a row has behind it, padding included."""
        return self._values.shape[2] + self.length

    @property
    def _slots(self) -> int:
        """Suffix slots that a pass attends to: all of the buffers', with unused ones hidden, or those in use."""
        return self.suffix.num_slots if self.whole_buffers else self.length

    def _visibility(self, num_positions: int) -> Tensor | None:
        """What is added to the scores of the running pass, 0 where a query position may look and -inf where not.

        Returns:
            (P | 1, 1, G | 1, 1, Q, L + S), or None where everything may be seen.
        """
        values = self._values
        before, slots, prefix = self.length - num_positions, self._slots, self.prefix_mask
        if prefix is None and self.valid is None and num_positions == 1 and slots == self.length:
            return None
        slot = torch.arange(slots, device=values.device)
        query = before + torch.arange(num_positions, device=values.device).unsqueeze(-1)
        suffix = (slot <= query).view(1, 1, 1, 1, num_positions, slots)
        if self.valid is not None:
            # A waiting position sees itself, or its softmax would be over nothing; nobody reads what it computes.
            valid = nn.functional.pad(self.valid, (0, slots - self.length))
            suffix = suffix & (valid.view(self.num_groups, 1, self.group_size, 1, 1, slots) | (slot == query))
        if prefix is None:
            prefix = torch.ones(1, values.shape[2], dtype=torch.bool, device=values.device)
        prefix = prefix.view(prefix.shape[0], 1, 1, 1, 1, -1)
        shape = torch.broadcast_shapes(prefix.shape[:-1], suffix.shape[:-1])
        seen = torch.cat([prefix.expand(*shape, -1), suffix.expand(*shape, -1)], dim=-1)
        return torch.zeros_like(seen, dtype=torch.float32).masked_fill_(~seen, float("-inf"))

    def _prefix_lengths(self) -> Tensor:
        """Real positions of every prefix, (P,) int64."""
        if self.prefix_mask is not None:
            return self.prefix_mask.sum(dim=1)
        return torch.full((self.num_groups,), self._values.shape[2])

    def _as_groups(self, states: Tensor) -> Tensor:
        return states.view(self.num_groups, self.group_size, *states.shape[1:]).transpose(1, 2)


def _kernels_suit(keys: Tensor, values: Tensor) -> bool:
    return keys.shape == values.shape and attention.suits(keys, values)
