"""The rows' own keys and values: static buffers that grow, written in place by one line of passes and safe to fork.

Several caches may read the same buffers, each as far as its own length. The first that goes on from the last slot written
writes in place; any other, whose next slot is taken, is given a copy of what is its own. So a cache can be extended any
number of times, and what it holds never changes.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

_FIRST_SLOTS = 16


class Suffix:
    """Buffers of all layers; ``suffix[layer]`` is a pair of keys and values, (P, H, G, S, hd) each.

    Args:
        layers: The buffers.
        written: Slots in use by the cache that has gone furthest.
        max_slots: Slots that a row will need at most, where that is known: buffers grow no further.
    """

    def __init__(self, layers: list[tuple[Tensor, Tensor]], written: int = 0, max_slots: int | None = None) -> None:
        self.layers = layers
        self.written = written
        self.max_slots = max_slots

    @classmethod
    def empty(cls, prefix: list[tuple[Tensor, Tensor]], group_size: int = 1, max_slots: int | None = None) -> Suffix:
        """No slots yet, for ``group_size`` rows beside each prefix: per layer keys (P, H, hd, L) and values (P, H, L, hd)."""
        return cls(
            [
                (
                    keys.new_empty(*keys.shape[:2], group_size, 0, keys.shape[2]),
                    values.new_empty(*values.shape[:2], group_size, 0, values.shape[3]),
                )
                for keys, values in prefix
            ],
            max_slots=max_slots,
        )

    def __getitem__(self, layer: int) -> tuple[Tensor, Tensor]:
        return self.layers[layer]

    @property
    def num_slots(self) -> int:
        return self.layers[0][0].shape[3]

    def reserve(self, length: int, num_slots: int) -> Suffix:
        """Buffers whose slots from ``length`` on are the caller's to write: these, unless another has written there."""
        own = self if self.written == length else self.rearranged(lambda rows: rows, length)
        own.written = length + num_slots
        if own.num_slots < own.written:
            own._grow(length)
        return own

    def rearranged(self, rows: Callable[[Tensor], Tensor], length: int) -> Suffix:
        """A copy of the first ``length`` slots, with ``rows`` applied to every buffer (P, H, G, S, hd)."""
        layers = []
        for keys, values in self.layers:
            layers.append((self._filled(rows(keys[..., :length, :])), self._filled(rows(values[..., :length, :]))))
        return Suffix(layers, length, self.max_slots)

    def _grow(self, length: int) -> None:
        """Moves to larger buffers, layer by layer, so that never more than one layer is held twice."""
        for layer, (keys, values) in enumerate(self.layers):
            used = (buffer[..., :length, :] for buffer in (keys, values))
            self.layers[layer] = (self._filled(next(used), self.written), self._filled(next(used), self.written))

    def _filled(self, used: Tensor, needed: int = 1) -> Tensor:
        """A buffer that begins with the used slots (P, H, G, S, hd), with room to grow into."""
        needed = max(needed, used.shape[3])
        slots = max(_FIRST_SLOTS, 1 << (needed - 1).bit_length())  # by doubling
        slots = slots if self.max_slots is None else max(needed, min(slots, self.max_slots))
        buffer = used.new_zeros(*used.shape[:3], slots, used.shape[4])  # unused slots are hidden, but must be finite
        buffer[..., : used.shape[3], :] = used
        return buffer
