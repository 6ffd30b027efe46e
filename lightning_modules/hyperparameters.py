"""The options of a module as plain data, and back: what a checkpoint stores, TensorBoard shows and a load makes again.

Nothing is imported or run on behalf of a checkpoint: dataclasses come from the annotations of the module's constructor, samplers
from their registry.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from latent_tts.sampling import SAMPLERS, Sampler


def options_of(module: object, values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a module's constructor among `values` (its `locals()`), as plain data."""
    names = [name for name in inspect.signature(type(module).__init__).parameters if name != "self"]
    return {name: plain(values[name]) for name in names}


def plain(value: Any) -> Any:
    """Dataclasses and samplers as mappings, tuples as lists; anything else as it is."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Sampler):
        value = value.settings()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def restored(module: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a module's constructor from what `options_of` gave."""
    hints = get_type_hints(module.__init__)  # type: ignore[misc]
    return {name: _typed(value, hints[name]) for name, value in options.items()}


def _typed(value: Any, hint: Any) -> Any:
    if not isinstance(value, Mapping):
        return tuple(value) if get_origin(hint) is tuple else value
    for candidate in (hint, *get_args(hint)):
        if isinstance(candidate, type) and is_dataclass(candidate):
            hints = get_type_hints(candidate)
            return candidate(**{name: _typed(item, hints[name]) for name, item in value.items()})
        if isinstance(candidate, type) and issubclass(candidate, Sampler):
            return SAMPLERS[value["name"]](**{name: item for name, item in value.items() if name != "name"})
    return dict(value)
