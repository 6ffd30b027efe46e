"""The settings a run was made with: by which other runs may go on in its folder, with more problems or more of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

Settings = dict[str, Any]
"""Flat: `model.num_rollouts` -> 16. Two runs may share a folder only when all of it agrees."""

_NO_GROWTH = ("model.latent_control", "model.adaptive")
"""What a record holds under these depends on all of its rollouts: runs with them take more problems, and nothing else."""


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Settings:
    """Nested settings as one level of dotted names; lists stay values."""
    flat: Settings = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(stored: Settings, current: Settings) -> list[str]:
    """One phrase for each setting in which two runs differ, such as `model.seed was 0 and is 1 now`.

    What may grow (`MORE_PROBLEMS`, `MORE_OF_EACH`) and does is no difference: the run goes on with what is missing. Nor is what
    only one of them names and has switched off (see `off`): the other one is older than the option.
    """
    keys = [*stored, *(key for key in current if key not in stored)]
    return [
        f"{key} was {_shown(stored.get(key))} and is {_shown(current.get(key))} now"
        for key in keys
        if stored.get(key) != current.get(key)
        and not _lacking(key, stored, current)
        and not _may_grow(key, stored, current)
    ]


def off(value: Any) -> bool:
    """Whether a setting is as if there were none: False or None, which is why a new option is one of these by default."""
    return value is False or value is None


def _lacking(key: str, stored: Settings, current: Settings) -> bool:
    """Whether one run does not know a setting that the other one has switched off."""
    return not (key in stored and key in current) and off(stored.get(key)) and off(current.get(key))


def _at_least(other: int | None, limit: int | None) -> bool:
    """For limits: None is no limit."""
    return limit is None or (other is not None and limit >= other)


def _added(before: Any, now: Any) -> bool:
    return before is None and now is not None


def _includes(before: Any, now: Any) -> bool:
    """Whether a list holds all that another did."""
    return isinstance(before, list) and isinstance(now, list) and all(one in now for one in before)


MORE_PROBLEMS = {"data.limit": _at_least, "data.size": _at_least}
"""Settings by which a run takes further problems: name -> whether a value (first) may become another (second)."""

MORE_OF_EACH: dict[str, Callable[[Any, Any], bool]] = {
    "model.num_rollouts": lambda before, now: now > before,
    "model.aggregations": _includes,
    "model.search": _includes,
    "model.reward_model.fingerprint": _added,
    "model.written.fingerprint": _added,
    "model.written.max_written_tokens": _added,
    "model.keep_latents": _added,
}
"""Settings by which the records that are there get more in them; all others stay, or are refused by name."""


def _may_grow(key: str, stored: Settings, current: Settings) -> bool:
    before, now = stored.get(key), current.get(key)
    if key in MORE_PROBLEMS:
        return MORE_PROBLEMS[key](before, now)
    if key in MORE_OF_EACH and "model.num_rollouts" in stored:
        return not any(name.startswith(_NO_GROWTH) for name in (*stored, *current)) and MORE_OF_EACH[key](before, now)
    return False


def grows_records(stored: Settings, current: Settings) -> bool:
    """Whether records that are there have to get more in them, settings being no different otherwise."""
    return any(stored.get(key) != current.get(key) for key in MORE_OF_EACH)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
