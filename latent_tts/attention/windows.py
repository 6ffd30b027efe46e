"""How far a position sees, by what a configuration says: which windows the probe crosses, and which no sequence may reach."""

from __future__ import annotations

import re

from transformers import PreTrainedConfig

_LEAST = 20  # positions of the longest sequence that is compared
_BEYOND = 7  # positions past a window, of the longer prompt and its thoughts
_LARGEST_WINDOW = 512  # that is crossed; larger ones are not entered
_NAMES = re.compile(r"window|chunk|block_size|local_attention|top_?k$|topk_blocks|^original_max_position_embeddings$")


def longest_sequence(config: PreTrainedConfig) -> int | None:
    """Positions up to which a model was compared with itself: those it has, or the smallest window that was not crossed."""
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    limits = [positions] if isinstance(positions, int) and positions > 0 else []
    crossed = positions_to_compare(config)
    return min([*limits, *(size for size in _windows(text) if size >= crossed)], default=None)


def _windows(config: PreTrainedConfig) -> list[int]:
    """Sizes in a configuration that change what a position sees, by their names."""
    rope = getattr(config, "rope_parameters", None) or {}  # of all layers, or of each type of layer
    tables = [config.to_dict(), rope, *(value for value in rope.values() if isinstance(value, dict))]
    fields = [item for table in tables for item in table.items()]
    sizes = [value for name, value in fields if _NAMES.search(name) and name != "max_window_layers"]
    return [size for size in sizes if isinstance(size, int) and not isinstance(size, bool) and size > 1]


def positions_to_compare(config: PreTrainedConfig) -> int:
    """Positions of the longest sequence that is compared."""
    text = config.get_text_config()
    small = [size + _BEYOND for size in _windows(text) if size <= _LARGEST_WINDOW]
    limit = getattr(text, "max_position_embeddings", None)
    wanted = max(_LEAST, *small) if small else _LEAST
    return min(wanted, limit) if isinstance(limit, int) and limit > 0 else wanted
